/* Load on one port of this machine, one thread, every response read to its end.
 *
 *   load PORT CONNECTIONS SECONDS RATE FILE
 *
 * FILE: requests as they are sent, each behind a decimal length and a newline. RATE 0: closed loop, every connection sends
 * its next request when its last is answered. RATE above 0: open loop, so many a second spread evenly; one that finds no idle
 * connection waits for it, and its time counts from when it was due.
 * Prints: responses, errors, seconds, then the 50th and 99th percentile and the mean of microseconds to the first body byte. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 8192
#define SAMPLES_MAX 4000000

struct connection {
    int fd, busy, chunked, in_body;
    long left;
    double due;
    char head[8192];
    size_t size;
    char tail[5];
};

static struct connection connections[CONNECTIONS_MAX];
static struct { char *data; size_t size; } *requests;
static size_t count, next_request, answered, errors, samples;
static float *first_us;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t size;
    if (!file) exit(2);
    while (fscanf(file, "%zu", &size) == 1 && fgetc(file) == '\n') {
        requests = realloc(requests, (count + 1) * sizeof *requests);
        requests[count].data = malloc(size);
        requests[count].size = fread(requests[count].data, 1, size, file);
        count++;
    }
    fclose(file);
    if (!count) exit(2);
}

static int dial(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (connect(fd, (struct sockaddr *)&at, sizeof at)) { perror("connect"); exit(1); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static void ask(struct connection *of, double due) {
    of->busy = 1, of->in_body = 0, of->size = 0, of->due = due;
    memset(of->tail, 0, sizeof of->tail);
    size_t at = next_request++ % count, done = 0;
    while (done < requests[at].size) {
        ssize_t sent = send(of->fd, requests[at].data + done, requests[at].size - done, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) { errors++; return; }
        if (sent > 0) done += sent;
    }
}

/* Whether the response is complete. */
static int body(struct connection *of, const char *data, size_t size) {
    if (!size) return !of->chunked && of->left == 0;
    if (samples < SAMPLES_MAX && of->in_body == 1) first_us[samples++] = (now() - of->due) * 1e6;
    of->in_body = 2;
    if (!of->chunked) return (of->left -= size) <= 0;
    for (size_t i = size > 5 ? size - 5 : 0; i < size; i++) memmove(of->tail, of->tail + 1, 4), of->tail[4] = data[i];
    return !memcmp(of->tail, "0\r\n\r\n", 5);
}

static int take(struct connection *of, char *data, size_t size) {
    if (of->in_body) return body(of, data, size);
    size_t before = of->size, room = sizeof of->head - 1 - before, copied = size < room ? size : room;
    memcpy(of->head + before, data, copied);
    of->head[of->size += copied] = 0;
    char *end = strstr(of->head, "\r\n\r\n");
    if (!end) return copied < size ? -1 : 0;
    *end = 0;
    size_t read = end + 4 - of->head - before; /* of `data`, which may hold more of the body than the buffer of a head */
    if (strncmp(of->head + 8, " 200", 4)) errors++;
    char *length = strcasestr(of->head, "\r\ncontent-length:");
    of->left = length ? strtol(length + 17, NULL, 10) : 0;
    of->chunked = !length;
    of->in_body = 1;
    return body(of, data + read, size - read);
}

static int by_size(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

int main(int argument_count, char **arguments) {
    if (argument_count != 6) return 2;
    int port = atoi(arguments[1]), clients = atoi(arguments[2]), poll = epoll_create1(0), idle[CONNECTIONS_MAX], idlers = 0;
    double seconds = atof(arguments[3]), rate = atof(arguments[4]);
    if (clients > CONNECTIONS_MAX) return 2;
    read_requests(arguments[5]);
    first_us = malloc(SAMPLES_MAX * sizeof *first_us);
    for (int i = 0; i < clients; i++) {
        connections[i].fd = dial(port);
        struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &wanted);
        idle[idlers++] = i;
    }
    double began = now(), until = began + seconds, at;
    size_t sent = 0;
    int busy = 0;
    while ((at = now()) < until || (busy && at < until + 10)) {
        while (idlers && at < until && (rate == 0 || began + sent / rate <= at)) {
            ask(&connections[idle[--idlers]], rate == 0 ? at : began + sent / rate);
            sent++, busy++;
        }
        double wait = rate == 0 || at >= until ? 0.1 : began + sent / rate - at;
        struct timespec patience = {0, wait > 0.1 || !idlers ? 100000000 : wait > 0 ? (long)(wait * 1e9) : 0};
        struct epoll_event ready[512];
        int found = epoll_pwait2(poll, ready, 512, &patience, NULL);
        for (int i = 0; i < found; i++) {
            struct connection *of = &connections[ready[i].data.u32];
            char data[65536];
            ssize_t got = recv(of->fd, data, sizeof data, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            int done = got > 0 && of->busy ? take(of, data, got) : -1;
            if (done < 0) {
                errors++;
                close(of->fd);
                of->fd = dial(port);
                struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = ready[i].data.u32};
                epoll_ctl(poll, EPOLL_CTL_ADD, of->fd, &wanted);
            }
            if (done && of->busy) {
                answered += done > 0;
                of->busy = 0, busy--;
                idle[idlers++] = ready[i].data.u32;
            } else if (done < 0) {
                continue;
            }
        }
    }
    double took = now() - began, sum = 0;
    qsort(first_us, samples, sizeof *first_us, by_size);
    for (size_t i = 0; i < samples; i++) sum += first_us[i];
    printf("%zu %zu %f %f %f %f\n", answered, errors + busy, took, samples ? first_us[samples / 2] : 0.0,
           samples ? first_us[samples * 99 / 100] : 0.0, samples ? sum / samples : 0.0);
    return 0;
}
