/* Subscribers of the resume storm.
 *
 *   storm PORT WITNESSES CLIENTS PATH CURSORS BODY_BYTES
 *
 * CURSORS is a file of lines "cursor number": client i resumes from line i modulo their count and must be given number + 1
 * next. Opens the witnesses, who follow live from the start, and says {"open":N}. Then it obeys lines on standard input:
 *
 *   watch        forget what was measured of the witnesses so far; the answer tells what was: {"p50_ms":…,"p99_ms":…,…}
 *   storm        all clients connect at once; answered when every one is live (has seen cdrs.caught-up)
 *   check NUMBER wait until everybody has been given this number, and tell what was wrong
 *
 * STORM_MARK in the environment: what a client has seen once it is live, where that is not cdrs.caught-up.
 *
 * Events carry their number and the monotonic time they were sent at. Every subscriber checks that numbers go up by
 * exactly one; latency is from sending to the read.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
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

enum { TAIL = 256, READ = 1 << 20, SAMPLES = 1 << 22, CONNECTING = 512 };
#define NEEDLE "{\"q\":\""
enum { NEEDLE_LEN = 6, T_AT = NEEDLE_LEN + 10 + 7, STAMPED_LEN = T_AT + 19 + 1 };

struct client {
    int fd, is_asked, is_live, is_witness;
    uint16_t tail;
    uint32_t next;
    uint64_t dialled, live_at;
    const char *cursor;
    char rest[TAIL];
};

static int port, epoll_fd, open_count, live_count, lost;
static unsigned body_bytes;
static uint64_t repeats, gaps, holes_told, events_read;
static uint32_t *samples, sample_count;
static char *buffer;
static const char *path, *mark = "event: cdrs.caught-up";

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000ull + (uint64_t)at.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void ask(struct client *client) {
    char request[2048];
    const char *cursor = client->cursor;
    int size = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n%s%s%s\r\n",
                        path, port, cursor ? "Last-Event-ID: " : "", cursor ? cursor : "", cursor ? "\r\n" : "");
    if (send(client->fd, request, (size_t)size, MSG_NOSIGNAL) != size) die("send");
    client->is_asked = 1;
}

/* Never waits: where the server's backlog is full, the kernel tries again after a second, and others go on meanwhile. */
static void dial(struct client *client, const char *cursor) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0) die("socket");
    client->dialled = now_ns();
    client->cursor = cursor;
    client->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) == 0) ask(client);
    else if (errno != EINPROGRESS) die("connect");
    struct epoll_event event = {.events = client->is_asked ? EPOLLIN : EPOLLOUT, .data.ptr = client};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
    open_count++;
}

static uint64_t number_at(const char *text, unsigned count) {
    uint64_t value = 0;
    while (count--) value = value * 10 + (uint64_t)(*text++ - '0');
    return value;
}

static void take(struct client *client, const char *event, uint64_t now) {
    uint32_t number = (uint32_t)number_at(event + NEEDLE_LEN, 10);
    if (client->next && number < client->next) repeats++;
    else if (client->next && number > client->next) gaps++;
    client->next = number + 1;
    events_read++;
    if (client->is_witness && sample_count < SAMPLES)
        samples[sample_count++] = (uint32_t)((now - number_at(event + T_AT, 19)) / 1000);
}

static void drain(struct client *client) {
    size_t have = client->tail;
    memcpy(buffer, client->rest, have);
    ssize_t got = recv(client->fd, buffer + have, READ, 0);
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
        lost++;
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, client->fd, NULL);
        close(client->fd);
        client->fd = -1;
        return;
    }
    uint64_t now = now_ns();
    char *at = buffer, *end = buffer + have + got;
    if (memmem(at, (size_t)(end - at), "event: cdrs.gap", 15) != NULL) holes_told++;
    for (;;) {
        char *event = memmem(at, (size_t)(end - at), NEEDLE, NEEDLE_LEN);
        if (event == NULL || end - event < STAMPED_LEN) break;
        take(client, event, now);
        at = event + STAMPED_LEN;
    }
    if (!client->is_live && memmem(buffer, (size_t)(end - buffer), mark, strlen(mark)) != NULL) {
        client->is_live = 1;
        client->live_at = now;
        live_count++;
    }
    size_t keep = (size_t)(end - at) < TAIL / 2 ? (size_t)(end - at) : TAIL / 2;
    client->tail = (uint16_t)keep;
    memcpy(client->rest, end - keep, keep);
}

static void connected(struct client *client) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    ask(client);
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, client->fd, &event);
}

static int turn(int timeout) {
    struct epoll_event events[512];
    int spoken = 0, count = epoll_wait(epoll_fd, events, 512, timeout);
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == NULL) spoken = 1;
        else if (!((struct client *)events[i].data.ptr)->is_asked) connected(events[i].data.ptr);
        else drain(events[i].data.ptr);
    }
    return spoken;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double share(double part) {
    return sample_count ? samples[(uint32_t)((sample_count - 1) * part)] / 1e3 : 0;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    port = atoi(argv[1]);
    path = argv[4];
    if (getenv("STORM_MARK")) mark = getenv("STORM_MARK");
    int witnesses = atoi(argv[2]), wanted = atoi(argv[3]), known = 0;
    body_bytes = (unsigned)atoi(argv[6]);
    static char cursors[4096][700];
    static uint32_t numbers[4096];
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    struct client *clients = calloc((size_t)(witnesses + wanted), sizeof *clients);
    buffer = malloc(READ + TAIL);
    samples = malloc(SAMPLES * sizeof *samples);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < witnesses; i++) {
        clients[i].is_witness = 1;
        dial(&clients[i], NULL);
    }
    while (live_count < witnesses && !lost) turn(100);
    printf("{\"open\":%d}\n", live_count);
    fflush(stdout);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &input);
    char line[256];
    for (;;) {
        if (!turn(-1)) continue;
        if (fgets(line, sizeof line, stdin) == NULL) return 0;
        if (strncmp(line, "watch", 5) == 0) {
            qsort(samples, sample_count, sizeof *samples, by_size);
            printf("{\"samples\":%u,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}\n", sample_count, share(0.5), share(0.99), share(1));
            sample_count = 0;
        } else if (strncmp(line, "storm", 5) == 0) {
            FILE *file = fopen(argv[5], "r");
            if (file == NULL) die("cursors");
            while (known < 4096 && fscanf(file, "%699s %u", cursors[known], &numbers[known]) == 2) known++;
            fclose(file);
            uint64_t begun = now_ns();
            for (int i = 0; i < wanted; i++) {
                struct client *client = &clients[witnesses + i];
                client->next = numbers[i % known] + 1;
                dial(client, cursors[i % known]);
                if (i % 64 == 63) turn(0);
                while (open_count - live_count > CONNECTING * 16 && !lost) turn(10);
            }
            uint64_t dialled = now_ns();
            while (live_count < witnesses + wanted && !lost && now_ns() - begun < 60000000000ull) turn(100);
            uint64_t ended = now_ns(), half = 0;
            for (int i = 0; i < wanted; i++) half += clients[witnesses + i].live_at - clients[witnesses + i].dialled;
            printf("{\"live\":%d,\"seconds\":%.3f,\"dialled\":%.3f,\"mean\":%.3f,\"lost\":%d}\n", live_count - witnesses,
                   (double)(ended - begun) / 1e9, (double)(dialled - begun) / 1e9, (double)half / 1e9 / wanted, lost);
        } else if (strncmp(line, "check", 5) == 0) {
            uint32_t upto = (uint32_t)atol(line + 5);
            uint64_t begun = now_ns();
            int behind = 1;
            while (behind && now_ns() - begun < 20000000000ull) {
                behind = 0;
                for (int i = 0; i < witnesses + wanted; i++)
                    if (clients[i].fd > 0 && clients[i].next <= upto) behind++;
                if (behind) turn(10);
            }
            printf("{\"behind\":%d,\"repeats\":%llu,\"gaps\":%llu,\"told\":%llu,\"lost\":%d,\"events\":%llu}\n", behind,
                   (unsigned long long)repeats, (unsigned long long)gaps, (unsigned long long)holes_told, lost, (unsigned long long)events_read);
        }
        fflush(stdout);
    }
}
