/* Producers in an open loop.
 *
 *   overload PORT CONNECTIONS RATE SECONDS BATCH PREFIX SUFFIX
 *
 * RATE requests a second are due, over all connections together, to the streams PREFIX1SUFFIX to PREFIX16SUFFIX; RATE 0:
 * each connection sends as soon as it has its answer. A connection has one request under way; what is due while none is
 * idle goes as soon as one is. BATCH 0: one event of 200 bytes as plain JSON, else a JSON batch of so many CloudEvents.
 * A connection that is closed is opened again. The first second is not counted. Prints one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER = 1 << 19, SAMPLES = 1 << 22, STREAMS = 16 };

struct connection {
    int fd;
    int is_idle;
    uint64_t sent;
    size_t have, want;
    char head[4096];
};

struct tally {
    uint64_t count;
    uint32_t kept, *us;
};

static int port, epoll_fd;
static unsigned batch;
static uint64_t unique, broken, without_retry_after, other;
static struct tally stored, refused;
static const char *prefix, *suffix;
static char *scratch, *request;

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static void dial(struct connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1, room = 1 << 20;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) {
        perror("connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->have = c->want = 0;
    c->is_idle = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void post(struct connection *c) {
    static char body[1 << 18];
    size_t size = 0;
    unsigned stream = (unsigned)(unique % STREAMS) + 1;
    if (batch == 0) {
        size = (size_t)sprintf(body, "{\"user\":\"GELongstreet\",\"page\":\"Talk:Oswald Tilghman\",\"n\":%010llu,\"pad\":\"%0120d\"}", (unsigned long long)unique++, 0);
    } else {
        body[size++] = '[';
        for (unsigned i = 0; i < batch; i++)
            size += (size_t)sprintf(body + size, "%s{\"specversion\":\"1.0\",\"id\":\"%llu\",\"source\":\"/load\",\"type\":\"t\",\"data\":{\"pad\":\"%0120d\"}}",
                                    i ? "," : "", (unsigned long long)unique++, 0);
        body[size++] = ']';
    }
    size_t at = (size_t)sprintf(request, "POST %s%u%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/%s\r\nContent-Length: %zu\r\n\r\n",
                                prefix, stream, suffix, batch ? "cloudevents-batch+json" : "json", size);
    memcpy(request + at, body, size);
    c->is_idle = 0;
    c->have = c->want = 0;
    c->sent = now_ns();
    send(c->fd, request, at + size, MSG_NOSIGNAL);
}

static void note(struct tally *tally, uint64_t ns) {
    tally->count++;
    if (tally->kept < SAMPLES) tally->us[tally->kept++] = (uint32_t)(ns / 1000);
}

/* Whether the answer is whole. */
static int take(struct connection *c, int counts) {
    ssize_t got = recv(c->fd, scratch, ANSWER, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (got <= 0) {
        if (!c->is_idle && counts) broken++;
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        close(c->fd);
        dial(c);
        return 1;
    }
    size_t room = sizeof c->head - 1 > c->have ? sizeof c->head - 1 - c->have : 0;
    memcpy(c->head + c->have, scratch, (size_t)got < room ? (size_t)got : room);
    c->have += (size_t)got;
    c->head[c->have < sizeof c->head ? c->have : sizeof c->head - 1] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (end == NULL) return 0;
    if (c->want == 0) {
        char *length = strcasestr(c->head, "content-length:");
        c->want = (size_t)(end + 4 - c->head) + (length ? strtoul(length + 15, NULL, 10) : 0);
    }
    if (c->have < c->want) return 0;
    uint64_t took = now_ns() - c->sent;
    int status = atoi(c->head + 9);
    if (counts) {
        if (status == 201 || status == 200) note(&stored, took);
        else if (status == 503 || status == 429) {
            note(&refused, took);
            if (strcasestr(c->head, "retry-after:") == NULL) without_retry_after++;
        } else other++;
    }
    c->is_idle = 1;
    if (strcasestr(c->head, "connection: close") != NULL) {
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        close(c->fd);
        dial(c);
    }
    return 1;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double share(struct tally *t, double part) {
    return t->kept ? t->us[(uint32_t)((t->kept - 1) * part)] / 1e3 : 0;
}

int main(int argc, char **argv) {
    if (argc != 8) return 2;
    port = atoi(argv[1]);
    int count = atoi(argv[2]), idle = 0;
    double rate = atof(argv[3]), seconds = atof(argv[4]);
    batch = (unsigned)atoi(argv[5]);
    prefix = argv[6];
    suffix = argv[7];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    scratch = malloc(ANSWER);
    request = malloc(1 << 19);
    stored.us = malloc(SAMPLES * sizeof(uint32_t));
    refused.us = malloc(SAMPLES * sizeof(uint32_t));
    epoll_fd = epoll_create1(0);
    unique = now_ns() / 1000 * 1000;
    struct connection *all = calloc((size_t)count, sizeof *all), **free_ones = calloc((size_t)count, sizeof *free_ones);
    for (int i = 0; i < count; i++) {
        dial(&all[i]);
        free_ones[idle++] = &all[i];
    }
    uint64_t begun = now_ns(), due = 0, counted = 0;
    for (;;) {
        uint64_t now = now_ns();
        double at = (double)(now - begun) / 1e9;
        if (at >= seconds + 1) break;
        if (at >= 1 && !counted) counted = now;
        while (idle && (rate == 0 || (double)due < at * rate)) {
            due++;
            post(free_ones[--idle]);
        }
        struct epoll_event events[256];
        int ready = epoll_wait(epoll_fd, events, 256, 1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            int was_idle = c->is_idle;
            if (take(c, counted != 0) && !was_idle && c->is_idle) free_ones[idle++] = c;
        }
    }
    double took = (double)(now_ns() - counted) / 1e9, wanted = rate ? rate * (seconds + 1) : (double)due;
    qsort(stored.us, stored.kept, sizeof(uint32_t), by_size);
    qsort(refused.us, refused.kept, sizeof(uint32_t), by_size);
    printf("{\"seconds\":%.3f,\"stored\":%llu,\"refused\":%llu,\"other\":%llu,\"broken\":%llu,\"without_retry_after\":%llu,"
           "\"sent_share\":%.3f,\"stored_p50\":%.2f,\"stored_p99\":%.2f,\"refused_p50\":%.2f,\"refused_p99\":%.2f,\"refused_max\":%.2f}\n",
           took, (unsigned long long)stored.count, (unsigned long long)refused.count, (unsigned long long)other,
           (unsigned long long)broken, (unsigned long long)without_retry_after, (double)due / wanted, share(&stored, 0.5),
           share(&stored, 0.99), share(&refused, 0.5), share(&refused, 0.99), share(&refused, 1));
    return 0;
}
