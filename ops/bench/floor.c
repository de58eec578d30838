/* The floor of a fan-out: one thread that writes the same bytes to every socket with plain send(), and nothing else.
 *
 *   floor PORT ENVELOPE_BYTES
 *
 * GET: an event stream. POST: its body, or each line of it, becomes one event, wrapped in ENVELOPE_BYTES of what the
 * product's frames carry around a payload; the events of one request are joined into one chunk. No heartbeat, no
 * resume, no back-pressure (it waits for a full socket), no HTTP beyond what the loader needs.
 *
 * Under /v1/events a GET names up to two streams (stream=many.7&stream=group.0), and each line of a POST is a whole
 * event that says its "cdrsstream": it goes to the readers of that one, in a chunk of its own and as it is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FILES = 1 << 16, INPUT = 1 << 22, STREAMS = 1 << 17, EACH = 2 };
#define MANY "/v1/events"
#define STREAM_OF "\"cdrsstream\":\""

static char *inputs[FILES];
static size_t filled[FILES];
static int subscribers[FILES], count, place[FILES];
static char *out;
static int envelope;
static struct {
    int *fds, count, room;
} readers[STREAMS];
static int reads[FILES][EACH]; /* what a socket reads, counted from 1 */

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Of "many.7" or "group.7". */
static int stream_at(const char *name) {
    const char *dot = strchr(name, '.');
    return dot ? (int)((unsigned)(atoi(dot + 1) * 2 + (*name == 'g')) % STREAMS) : 0;
}

static void read_streams(int fd, const char *text) {
    for (int n = 0; n < EACH && (text = strstr(text, "stream=")) != NULL; n++, text += 7) {
        int stream = stream_at(text + 7);
        if (readers[stream].count == readers[stream].room)
            readers[stream].fds = realloc(readers[stream].fds, sizeof(int) * (size_t)(readers[stream].room += 16));
        readers[stream].fds[readers[stream].count++] = fd;
        reads[fd][n] = stream + 1;
    }
}

static void read_no_more(int fd) {
    for (int n = 0; n < EACH; n++) {
        int stream = reads[fd][n] - 1, i = 0;
        reads[fd][n] = 0;
        if (stream < 0) continue;
        while (i < readers[stream].count && readers[stream].fds[i] != fd) i++;
        if (i < readers[stream].count) readers[stream].fds[i] = readers[stream].fds[--readers[stream].count];
    }
}

static void forget(int fd) {
    read_no_more(fd);
    if (place[fd]) {
        int last = subscribers[--count];
        subscribers[place[fd] - 1] = last;
        place[last] = place[fd];
        place[fd] = 0;
    }
    free(inputs[fd]);
    inputs[fd] = NULL;
    filled[fd] = 0;
    close(fd);
}

static void deliver(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t done = send(fd, data, size, MSG_NOSIGNAL);
        if (done < 0) {
            if (errno != EAGAIN) return;
            struct pollfd until = {.fd = fd, .events = POLLOUT};
            poll(&until, 1, 1000);
            continue;
        }
        data += done;
        size -= (size_t)done;
    }
}

static size_t framed(size_t at, const char *line, size_t size, int around) {
    at += (size_t)sprintf(out + at, "id: %040d\ndata: ", 0);
    memset(out + at, 'e', (size_t)around);
    at += (size_t)around;
    memcpy(out + at, line, size);
    memcpy(out + at + size, "\n\n", 2);
    return at + size + 2;
}

/* What stands in `out` from 16 up to `at`, as one chunk. */
static void send_chunk(size_t at, const int *to, int number) {
    char head[17];
    int digits = sprintf(head, "%zx\r\n", at - 16);
    char *chunk = out + 16 - digits;
    memcpy(chunk, head, (size_t)digits);
    memcpy(out + at, "\r\n", 2);
    for (int i = 0; i < number; i++) deliver(to[i], chunk, at + 2 - 16 + (size_t)digits);
}

static void publish(const char *body, size_t size, int is_many) {
    size_t at = 16;
    while (size) {
        const char *end = memchr(body, '\n', size);
        size_t line = end ? (size_t)(end - body) : size;
        if (line && is_many) {
            const char *name = memmem(body, line, STREAM_OF, strlen(STREAM_OF));
            int stream = name ? stream_at(name + strlen(STREAM_OF)) : 0;
            send_chunk(framed(16, body, line, 0), readers[stream].fds, readers[stream].count);
        } else if (line) {
            at = framed(at, body, line, envelope);
        }
        size -= end ? line + 1 : line;
        body += line + 1;
    }
    if (at > 16) send_chunk(at, subscribers, count);
}

static void request(int fd) {
    char *text = inputs[fd];
    text[filled[fd]] = 0;
    char *end = strstr(text, "\r\n\r\n");
    if (end == NULL) return;
    if (memcmp(text, "GET", 3) == 0) {
        static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
                                   "transfer-encoding: chunked\r\n\r\nb\r\n: welcome\n\n\r\n";
        send(fd, head, sizeof head - 1, MSG_NOSIGNAL);
        if (memcmp(text + 4, MANY, strlen(MANY)) == 0) {
            read_streams(fd, text);
        } else {
            subscribers[count++] = fd;
            place[fd] = count;
        }
        free(inputs[fd]);
        inputs[fd] = NULL;
        filled[fd] = 0;
        return;
    }
    char *length = strcasestr(text, "content-length:");
    size_t size = length ? strtoul(length + 15, NULL, 10) : 0;
    if (filled[fd] < (size_t)(end + 4 - text) + size) return;
    publish(end + 4, size, memcmp(text + 5, MANY, strlen(MANY)) == 0);
    filled[fd] = 0;
    static const char stored[] = "HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n";
    send(fd, stored, sizeof stored - 1, MSG_NOSIGNAL);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    envelope = atoi(argv[2]);
    out = malloc(1 << 26);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int door = socket(AF_INET, SOCK_STREAM, 0), one = 1, epoll = epoll_create1(0);
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(door, (struct sockaddr *)&at, sizeof at) < 0 || listen(door, 4096) < 0) die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = door}, events[256];
    epoll_ctl(epoll, EPOLL_CTL_ADD, door, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == door) {
                int client = accept4(door, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0) continue;
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = client};
                epoll_ctl(epoll, EPOLL_CTL_ADD, client, &event);
                continue;
            }
            if (inputs[fd] == NULL) inputs[fd] = malloc(INPUT);
            ssize_t got = recv(fd, inputs[fd] + filled[fd], INPUT - filled[fd] - 1, 0);
            if (got <= 0) {
                if (got == 0 || errno != EAGAIN) forget(fd);
                continue;
            }
            filled[fd] += (size_t)got;
            request(fd);
        }
    }
}
