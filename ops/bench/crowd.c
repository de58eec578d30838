/* A crowd that comes and goes: subscribers of one stream that take bytes and do not look at them.
 *
 *   crowd PORT SUBSCRIBERS EVENTS_PATH ACCEPT_ENCODING
 *
 * Opens the subscribers, waits until each has been sent something, and says so: {"open":N}. Then it obeys lines on
 * standard input, draining all the while:
 *
 *   watch SECONDS CHURN     drain; CHURN times a second the oldest subscriber leaves and a new one comes
 *
 * answered by {"seconds":S,"bytes":B,"joined":J,"lost":L}: bytes as they came from the sockets, heads and all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTING = 256, READ = 1 << 18 };

struct client {
    int fd, is_open;
};

static int port, epoll_fd, opened, lost, dialled;
static struct client *clients;
static char request[1024], buffer[READ];
static size_t request_size;
static uint64_t bytes_read;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void come(struct client *client) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    client->fd = socket(AF_INET, SOCK_STREAM, 0);
    client->is_open = 0;
    if (client->fd < 0 || connect(client->fd, (struct sockaddr *)&to, sizeof to) < 0) die("connect");
    int one = 1;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (send(client->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) die("send");
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, client->fd, &event) < 0) die("epoll_ctl");
    dialled++;
}

static void leave(struct client *client) {
    if (client->fd < 0) return;
    close(client->fd);
    client->fd = -1;
}

static void turn(int timeout) {
    struct epoll_event events[512];
    int count = epoll_wait(epoll_fd, events, 512, timeout);
    for (int i = 0; i < count; i++) {
        struct client *client = events[i].data.ptr;
        if (client->fd < 0) continue;
        ssize_t got = recv(client->fd, buffer, READ, 0);
        if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (got <= 0) {
            lost++;
            leave(client);
            continue;
        }
        if (!client->is_open) {
            if (memcmp(buffer, "HTTP/1.1 200", 12) != 0) {
                fprintf(stderr, "not subscribed: %.100s\n", buffer);
                exit(1);
            }
            client->is_open = 1;
            opened++;
        }
        bytes_read += (uint64_t)got;
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    port = atoi(argv[1]);
    int wanted = atoi(argv[2]);
    request_size = (size_t)snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\nAccept-Encoding: %s\r\n\r\n",
        argv[3], port, argv[4]);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    clients = calloc((size_t)wanted, sizeof *clients);
    epoll_fd = epoll_create1(0);
    double begun = now();
    while (opened < wanted && lost == 0 && now() - begun < 120) {
        while (dialled < wanted && dialled - opened < CONNECTING) come(&clients[dialled]);
        turn(1000);
    }
    printf("{\"open\":%d}\n", opened);
    fflush(stdout);
    char line[256];
    for (;;) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        while (poll(&input, 1, 0) == 0) turn(20);
        double seconds, churn;
        if (fgets(line, sizeof line, stdin) == NULL) return 0;
        if (sscanf(line, "watch %lf %lf", &seconds, &churn) != 2) return 2;
        double from = now(), at = from;
        uint64_t before = bytes_read;
        int joined = 0;
        lost = 0;
        while ((at = now()) < from + seconds) {
            while (joined < (int)((at - from) * churn)) {
                struct client *oldest = &clients[joined++ % wanted];
                leave(oldest);
                come(oldest);
            }
            turn(2);
        }
        printf("{\"seconds\":%.3f,\"bytes\":%llu,\"joined\":%d,\"lost\":%d}\n", at - from,
               (unsigned long long)(bytes_read - before), joined, lost);
        fflush(stdout);
    }
}
