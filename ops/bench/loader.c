/* Subscribers and publishers of the fan-out benchmarks.
 *
 *   loader PORT SUBSCRIBERS EVENTS_PATH POST_PATH BATCH_PATH OPEN_MARK BODY_BYTES
 *
 * Opens the subscribers (a few hundred handshakes at a time), waits until each has seen OPEN_MARK, and says so:
 * {"open":N,"seconds":S}. Then it obeys lines on standard input, draining all the while:
 *
 *   publish CONNECTIONS RATE SECONDS BATCH ONE_BY_ONE
 *       open loop, RATE events a second over all connections; BATCH > 1: whatever is due goes as one NDJSON request, of
 *       at most BATCH lines. ONE_BY_ONE: an event waits until the one before it has reached everybody (and is due then)
 *   quit
 *
 * LOADER_HEADERS (fields of a POST, each with its line end), LOADER_BEFORE and LOADER_AFTER (around a single event) in the
 * environment say how else a server wants to be told of an event.
 *
 * Every event carries its sequence number, its publisher and the monotonic time it was due at. Each client checks that
 * every publisher's numbers go up by exactly one. Latency is from due time to the read. An answer to `publish` is one
 * line of JSON. Frames may be joined and cut anywhere; every payload has the same length, so it is found by a search
 * that begins behind the last one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PUBLISHERS = 16, CONNECTING = 256, TAIL = 128, READ = 1 << 20, MARK = 64 };
#define NEEDLE "{\"q\":\""
#define STAMPED "{\"q\":\"%010u\",\"p\":\"%02u\",\"t\":\"%019llu\",\"pad\":\""
enum { NEEDLE_LEN = 6, P_AT = 6 + 10 + 7, T_AT = P_AT + 2 + 7, STAMPED_LEN = T_AT + 19 + 9 };

struct client {
    int fd;
    int is_open;
    int is_guest; /* comes and goes: its first number may be any, and it is not counted on */
    uint16_t tail;
    char rest[TAIL];
    uint32_t next[PUBLISHERS];
};

struct publisher {
    pthread_t thread;
    unsigned number, connections, batch, one_by_one;
    double rate, seconds;
    uint32_t sent;
    uint64_t latest, refused, requests;
};

static int port, wanted, opened, lost, guests_opened;
static const char *mark;
static unsigned body_bytes;
static struct client *clients;
static uint64_t deliveries, disorder, bytes_read, longest, guest_deliveries;
static uint64_t histogram[64 << 10];
static uint32_t base[PUBLISHERS];
static atomic_int publishing;
static _Atomic uint64_t reached;
static char *buffer;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static int dial(int flags) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) die("connect");
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

/* --- what arrives --- */

static void record(uint64_t us) {
    unsigned bits = 63u - (unsigned)__builtin_clzll(us | 1);
    unsigned shift = bits > 9 ? bits - 9 : 0;
    histogram[(shift << 10) + (us >> shift)]++;
    if (us > longest) longest = us;
}

static uint64_t percentile(double share) {
    uint64_t need = (uint64_t)(share * (double)deliveries), seen = 0;
    for (unsigned i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        seen += histogram[i];
        if (histogram[i] && seen > need) return (uint64_t)(i & 1023) << (i >> 10);
    }
    return longest;
}

static unsigned digits(const char *text, unsigned count) {
    unsigned value = 0;
    while (count--) value = value * 10 + (unsigned)(*text++ - '0');
    return value;
}

static void take(struct client *client, const char *event, uint64_t now) {
    uint32_t number = digits(event + NEEDLE_LEN, 10);
    unsigned publisher = digits(event + P_AT, 2) % PUBLISHERS;
    uint64_t due = (uint64_t)digits(event + T_AT, 9) * 10000000000ull;
    due += (uint64_t)digits(event + T_AT + 9, 5) * 100000ull + digits(event + T_AT + 14, 5);
    if (number < base[publisher]) return; /* of an earlier run */
    if (client->is_guest) {
        if (client->next[publisher] && number != client->next[publisher]) disorder++;
        client->next[publisher] = number + 1;
        guest_deliveries++;
        return;
    }
    if (number != client->next[publisher]) disorder++;
    client->next[publisher] = number + 1;
    deliveries++;
    record(now > due ? (now - due) / 1000 : 0);
}

static void drain(struct client *client, int epoll) {
    size_t have = client->tail;
    memcpy(buffer, client->rest, have);
    ssize_t got = recv(client->fd, buffer + have, READ, 0);
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        lost++;
        epoll_ctl(epoll, EPOLL_CTL_DEL, client->fd, NULL);
        close(client->fd);
        client->fd = -1;
        return;
    }
    uint64_t now = now_ns();
    bytes_read += (uint64_t)got;
    char *at = buffer, *end = buffer + have + got;
    if (!client->is_open) {
        if (memmem(at, (size_t)(end - at), mark, strlen(mark)) != NULL) {
            if (have == 0 && memcmp(buffer, "HTTP/1.1 200", 12) != 0) {
                fprintf(stderr, "not subscribed: %.100s\n", buffer);
                exit(1);
            }
            client->is_open = 1;
            if (client->is_guest) guests_opened++;
            else opened++;
        }
    }
    for (;;) {
        char *event = memmem(at, (size_t)(end - at), NEEDLE, NEEDLE_LEN);
        if (event == NULL) {
            size_t keep = client->is_open ? NEEDLE_LEN - 1 : MARK;
            if (at < end - keep) at = end - keep;
            break;
        }
        if (end - event < STAMPED_LEN) {
            at = event;
            break;
        }
        take(client, event, now);
        at = event + body_bytes < end ? event + body_bytes : end;
        if (at == end) break;
    }
    atomic_store_explicit(&reached, deliveries, memory_order_relaxed);
    client->tail = (uint16_t)(end - at);
    memcpy(client->rest, at, client->tail);
}

/* --- what is published --- */

static void all_written(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t done = send(fd, data, size, MSG_NOSIGNAL);
        if (done < 0) die("publish");
        data += done;
        size -= (size_t)done;
    }
}

static void answered(int fd, struct publisher *self) {
    static _Thread_local char answer[1 << 20];
    size_t have = 0;
    for (;;) {
        ssize_t got = recv(fd, answer + have, sizeof answer - have - 1, 0);
        if (got <= 0) die("no answer to a publisher");
        have += (size_t)got;
        answer[have] = 0;
        char *end = strstr(answer, "\r\n\r\n");
        if (end == NULL) continue;
        char *length = strcasestr(answer, "content-length:");
        if (length != NULL && length < end) {
            if (have >= (size_t)(end + 4 - answer) + strtoul(length + 15, NULL, 10)) break;
        } else if (have >= 5 && memcmp(answer + have - 5, "0\r\n\r\n", 5) == 0) {
            break;
        }
    }
    if (answer[9] != '2' || strstr(answer, "\"problem\"") != NULL) self->refused++;
    self->requests++;
}

/* --- main --- */

static void turn(int epoll, int timeout) {
    struct epoll_event events[512];
    int count = epoll_wait(epoll, events, 512, timeout);
    for (int i = 0; i < count; i++)
        if (events[i].data.ptr != NULL) drain(events[i].data.ptr, epoll);
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

#ifndef PART_OF_MANY
static const char *events_path, *post_path, *batch_path;
static const char *headers = "Content-Type: application/json\r\n", *before = "", *after = "";

static void *publish(void *of) {
    struct publisher *self = of;
    int fd = dial(0);
    size_t line = body_bytes + 1;
    char *body = malloc(line * self->batch + 2048), head[1024];
    double every = self->connections / self->rate;
    uint64_t begun = now_ns() + (uint64_t)(1e9 * every * self->number / self->connections);
    uint32_t total = (uint32_t)(self->rate * self->seconds / self->connections + 0.5);
    while (self->sent < total) {
        uint64_t due = begun + (uint64_t)(1e9 * every * self->sent), now = now_ns();
        if (due > now) {
            uint64_t until = self->batch > 1 && due < now + 2000000 ? now + 2000000 : due;
            struct timespec at = {(time_t)(until / 1000000000ull), (long)(until % 1000000000ull)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
            continue;
        }
        if (self->one_by_one) {
            while (atomic_load(&reached) < (uint64_t)self->sent * (uint64_t)wanted && now_ns() < now + 10000000000ull)
                usleep(500);
            uint64_t waited = now_ns() - now;
            now += waited;
            begun += waited > 1000000 ? waited : 0;
            due = begun + (uint64_t)(1e9 * every * self->sent);
        }
        if (now > due && now - due > self->latest) self->latest = now - due;
        size_t size = 0;
        unsigned count = 0;
        if (self->batch == 1) size += (size_t)sprintf(body, "%s", before);
        while (count < self->batch && self->sent < total) {
            due = begun + (uint64_t)(1e9 * every * self->sent);
            if (due > now && count) break;
            int n = sprintf(body + size, STAMPED, base[self->number] + self->sent, self->number, (unsigned long long)due);
            memset(body + size + n, 'x', body_bytes - (size_t)n - 2);
            memcpy(body + size + body_bytes - 2, "\"}\n", 3);
            size += line;
            self->sent++;
            count++;
        }
        if (self->batch == 1) {
            size--; /* no line end */
            size += (size_t)sprintf(body + size, "%s", after);
        }
        int n = snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%sContent-Length: %zu\r\n\r\n",
                         self->batch > 1 ? batch_path : post_path, port,
                         self->batch > 1 ? "Content-Type: application/x-ndjson\r\n" : headers, size);
        memmove(body + n, body, size);
        memcpy(body, head, (size_t)n);
        all_written(fd, body, size + (size_t)n);
        answered(fd, self);
    }
    close(fd);
    free(body);
    atomic_fetch_sub(&publishing, 1);
    return NULL;
}

static void open_some(int epoll) {
    static int dialled;
    char request[1024];
    int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n",
                        events_path, port);
    while (dialled < wanted && dialled - opened < CONNECTING) {
        struct client *client = &clients[dialled++];
        client->fd = dial(0);
        all_written(client->fd, request, (size_t)size);
        fcntl(client->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) < 0) die("epoll_ctl");
    }
}

static void run(int epoll, unsigned connections, double rate, double seconds, unsigned batch, unsigned one_by_one) {
    struct publisher publishers[PUBLISHERS] = {0};
    deliveries = disorder = longest = bytes_read = 0;
    atomic_store(&reached, 0);
    memset(histogram, 0, sizeof histogram);
    double cpu = cpu_seconds();
    uint64_t begun = now_ns(), expected = 0, late = 0, refused = 0, requests = 0;
    atomic_store(&publishing, (int)connections);
    for (unsigned i = 0; i < connections; i++) {
        publishers[i] = (struct publisher){.number = i, .connections = connections, .batch = batch, .one_by_one = one_by_one, .rate = rate, .seconds = seconds};
        if (pthread_create(&publishers[i].thread, NULL, publish, &publishers[i])) die("thread");
    }
    while (atomic_load(&publishing) > 0) turn(epoll, 5);
    uint64_t published = now_ns();
    for (unsigned i = 0; i < connections; i++) {
        pthread_join(publishers[i].thread, NULL);
        expected += (uint64_t)publishers[i].sent * (uint64_t)wanted;
        refused += publishers[i].refused;
        requests += publishers[i].requests;
        if (publishers[i].latest > late) late = publishers[i].latest;
    }
    uint64_t deadline = now_ns() + 20000000000ull;
    while (deliveries < expected && now_ns() < deadline) turn(epoll, 5);
    uint64_t ended = now_ns();
    printf("{\"subscribers\":%d,\"published\":%llu,\"requests\":%llu,\"refused\":%llu,\"expected\":%llu,\"deliveries\":%llu,"
           "\"disorder\":%llu,\"lost\":%d,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"publisher_late_ms\":%.1f,"
           "\"bytes\":%llu,\"seconds\":%.3f,\"drained_seconds\":%.3f,\"loader_cpu\":%.4f}\n",
           wanted, (unsigned long long)(expected / (wanted ? (uint64_t)wanted : 1)), (unsigned long long)requests,
           (unsigned long long)refused, (unsigned long long)expected, (unsigned long long)deliveries,
           (unsigned long long)disorder, lost, (double)percentile(0.5) / 1e3, (double)percentile(0.99) / 1e3,
           (double)longest / 1e3, (double)late / 1e6, (unsigned long long)bytes_read, (double)(published - begun) / 1e9,
           (double)(ended - begun) / 1e9, cpu_seconds() - cpu);
    fflush(stdout);
    for (unsigned i = 0; i < connections; i++) {
        base[i] += publishers[i].sent;
        for (int c = 0; c < wanted; c++) clients[c].next[i] = base[i];
    }
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    port = atoi(argv[1]);
    wanted = atoi(argv[2]);
    if (getenv("LOADER_HEADERS")) headers = getenv("LOADER_HEADERS");
    if (getenv("LOADER_BEFORE")) before = getenv("LOADER_BEFORE");
    if (getenv("LOADER_AFTER")) after = getenv("LOADER_AFTER");
    events_path = argv[3];
    post_path = argv[4];
    batch_path = argv[5];
    mark = argv[6];
    body_bytes = (unsigned)atoi(argv[7]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc((size_t)wanted + 1, sizeof *clients);
    buffer = malloc(READ + TAIL);
    int epoll = epoll_create1(0);
    uint64_t begun = now_ns();
    while (opened < wanted && lost == 0) {
        open_some(epoll);
        turn(epoll, 1000);
        if (now_ns() - begun > 120000000000ull) break;
    }
    printf("{\"open\":%d,\"seconds\":%.3f}\n", opened, (double)(now_ns() - begun) / 1e9);
    fflush(stdout);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
    char line[256];
    for (;;) {
        struct epoll_event events[512];
        int count = epoll_wait(epoll, events, 512, -1);
        int spoken = 0;
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL) spoken = 1;
            else drain(events[i].data.ptr, epoll);
        }
        if (!spoken) continue;
        unsigned connections, batch, one_by_one = 0;
        double rate, seconds;
        if (fgets(line, sizeof line, stdin) == NULL || strncmp(line, "quit", 4) == 0) return 0;
        if (sscanf(line, "publish %u %lf %lf %u %u", &connections, &rate, &seconds, &batch, &one_by_one) == 5 && connections <= PUBLISHERS) {
            epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
            run(epoll, connections, rate, seconds, batch ? batch : 1, one_by_one);
            epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
        }
    }
}
#endif
