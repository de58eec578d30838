/* Many streams with few readers each: subscribers and the publisher of the benchmark s4.
 *
 *   many PORT SUBSCRIBERS GROUP BODY_BYTES CHURN OPEN_MARK
 *
 * Subscriber k reads the streams many.k and group.g (g = k / GROUP) in one subscription. A round is one event to each
 * stream, spread evenly over the round's second; a subscriber gets two of it. Beside them CHURN guests a second come, read
 * what subscriber k reads, and leave after GUEST_SECONDS. Commands on standard input: "rounds N BATCH", "quit".
 * Checked as in loader.c: every subscriber gets every number of its two streams, in order.
 */
#define PART_OF_MANY
#include "loader.c"

enum { PRIVATE, GROUP_OF, GUESTS = 4096 };
#define GUEST_SECONDS 3
#define UUID7 "%08x-%04x-7%03x-8%03x-%012x" /* RFC 9562, 5.7, as the server makes its own */
#define LINE "{\"specversion\":\"1.0\",\"id\":\"" UUID7 "\",\"source\":\"/bench\",\"type\":\"many\",\"cdrsstream\":\"%s.%d\",\"data\":"

static int group_size, churn;
static uint32_t first_round;

static void subscribe(struct client *client, int k, int epoll) {
    char request[256];
    int size = snprintf(request, sizeof request,
                        "GET /v1/events?stream=many.%d&stream=group.%d HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n",
                        k, k / group_size);
    client->fd = dial(0);
    all_written(client->fd, request, (size_t)size);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, client->fd, &event) < 0) die("epoll_ctl");
}

/* One event to each stream in every round: a group's after the private ones of its members. */
static int line_of(char *to, uint64_t event, uint64_t due) {
    unsigned per_group = (unsigned)group_size + 1, in_round = (unsigned)(wanted / group_size) * per_group;
    uint32_t round = first_round + (uint32_t)(event / in_round);
    unsigned at = (unsigned)(event % in_round), group = at / per_group, member = at % per_group;
    int is_group = member == (unsigned)group_size;
    int number = is_group ? (int)group : (int)(group * (unsigned)group_size + member);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    int n = sprintf(to, LINE, (unsigned)(ms >> 16), (unsigned)(ms & 0xffff), round & 0xfff, (unsigned)is_group,
                    (unsigned)number, is_group ? "group" : "many", number);
    int begin = n;
    n += sprintf(to + n, STAMPED, round, is_group ? GROUP_OF : PRIVATE, (unsigned long long)due);
    memset(to + n, 'x', body_bytes - (size_t)(n - begin) - 2);
    n = begin + (int)body_bytes - 2;
    memcpy(to + n, "\"}}\n", 4);
    return n + 4;
}

static void *publish_rounds(void *of) {
    struct publisher *self = of;
    int fd = dial(0);
    size_t room = (body_bytes + 256) * self->batch + 512;
    char *body = malloc(room), head[512];
    uint64_t total = (uint64_t)(self->rate * self->seconds + 0.5), begun = now_ns();
    double every = 1e9 / self->rate;
    while (self->sent < total) {
        uint64_t due = begun + (uint64_t)(every * self->sent), now = now_ns();
        if (due > now) {
            struct timespec at = {(time_t)((now + 2000000) / 1000000000ull), (long)((now + 2000000) % 1000000000ull)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
            continue;
        }
        if (now - due > self->latest) self->latest = now - due;
        size_t size = 512;
        unsigned count = 0;
        for (; count < self->batch && self->sent < total; count++) {
            due = begun + (uint64_t)(every * self->sent);
            if (due > now) break;
            size += (size_t)line_of(body + size, self->sent++, due);
        }
        int n = sprintf(head, "POST /v1/events?receipts=errors HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\nContent-Length: %zu\r\n\r\n", size - 512);
        memcpy(body + 512 - n, head, (size_t)n);
        all_written(fd, body + 512 - n, size - 512 + (size_t)n);
        answered(fd, self);
    }
    close(fd);
    free(body);
    atomic_store(&publishing, 0);
    return NULL;
}

static void guests_come_and_go(struct client *guests, uint64_t begun, int epoll) {
    static unsigned come, gone;
    double elapsed = (double)(now_ns() - begun) / 1e9;
    if (come == 0) gone = 0;
    while (come < (unsigned)(elapsed * churn)) {
        struct client *guest = &guests[come % GUESTS];
        memset(guest, 0, sizeof *guest);
        guest->is_guest = 1;
        subscribe(guest, (int)((come * 7919u) % (unsigned)wanted), epoll);
        come++;
    }
    while (gone < come && (double)gone / churn + GUEST_SECONDS < elapsed) {
        struct client *guest = &guests[gone++ % GUESTS];
        if (guest->fd >= 0) close(guest->fd);
    }
}

static void rounds(int epoll, struct client *guests, unsigned count, unsigned batch) {
    struct publisher self = {.batch = batch, .rate = wanted + wanted / group_size, .seconds = count};
    deliveries = disorder = longest = bytes_read = guest_deliveries = 0;
    memset(histogram, 0, sizeof histogram);
    static uint64_t guests_since;
    double cpu = cpu_seconds();
    uint64_t begun = now_ns(), expected = 2ull * (uint64_t)wanted * count;
    if (guests_since == 0) guests_since = begun;
    base[PRIVATE] = base[GROUP_OF] = first_round;
    for (int k = 0; k < wanted; k++) clients[k].next[PRIVATE] = clients[k].next[GROUP_OF] = first_round;
    atomic_store(&publishing, 1);
    if (pthread_create(&self.thread, NULL, publish_rounds, &self)) die("thread");
    while (atomic_load(&publishing)) {
        turn(epoll, 5);
        if (churn) guests_come_and_go(guests, guests_since, epoll);
    }
    pthread_join(self.thread, NULL);
    uint64_t deadline = now_ns() + 20000000000ull;
    while (deliveries < expected && now_ns() < deadline) turn(epoll, 5);
    printf("{\"subscribers\":%d,\"published\":%u,\"requests\":%llu,\"refused\":%llu,\"expected\":%llu,\"deliveries\":%llu,"
           "\"disorder\":%llu,\"lost\":%d,\"guests\":%d,\"guest_deliveries\":%llu,\"p50_ms\":%.3f,\"p99_ms\":%.3f,"
           "\"max_ms\":%.3f,\"publisher_late_ms\":%.1f,\"seconds\":%.3f,\"loader_cpu\":%.4f}\n",
           wanted, self.sent, (unsigned long long)self.requests, (unsigned long long)self.refused,
           (unsigned long long)expected, (unsigned long long)deliveries, (unsigned long long)disorder, lost, guests_opened,
           (unsigned long long)guest_deliveries, (double)percentile(0.5) / 1e3, (double)percentile(0.99) / 1e3,
           (double)longest / 1e3, (double)self.latest / 1e6, (double)(now_ns() - begun) / 1e9, cpu_seconds() - cpu);
    fflush(stdout);
    first_round += count;
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    port = atoi(argv[1]);
    wanted = atoi(argv[2]);
    group_size = atoi(argv[3]);
    body_bytes = (unsigned)atoi(argv[4]);
    churn = atoi(argv[5]);
    mark = argv[6];
    clients = calloc((size_t)wanted, sizeof *clients);
    struct client *guests = calloc(GUESTS, sizeof *guests);
    buffer = malloc(READ + TAIL);
    int epoll = epoll_create1(0), dialled = 0;
    uint64_t begun = now_ns();
    while (opened < wanted && lost == 0 && now_ns() - begun < 120000000000ull) {
        for (; dialled < wanted && dialled - opened < CONNECTING; dialled++) subscribe(&clients[dialled], dialled, epoll);
        turn(epoll, 1000);
    }
    printf("{\"open\":%d,\"seconds\":%.3f}\n", opened, (double)(now_ns() - begun) / 1e9);
    fflush(stdout);
    struct epoll_event input = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
    for (;;) {
        struct epoll_event events[512];
        char line[256];
        unsigned count, batch;
        int ready = epoll_wait(epoll, events, 512, -1), spoken = 0;
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == NULL) spoken = 1;
            else drain(events[i].data.ptr, epoll);
        }
        if (!spoken) continue;
        if (fgets(line, sizeof line, stdin) == NULL || strncmp(line, "quit", 4) == 0) return 0;
        if (sscanf(line, "rounds %u %u", &count, &batch) == 2) {
            epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
            rounds(epoll, guests, count, batch);
            epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &input);
        }
    }
}
