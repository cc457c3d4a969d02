/* SPDX-License-Identifier: Apache-2.0
 *
 * The network of a test enclave, in one static program for the fabric of the process machine:
 *   enclave_network heartbeat       send the heartbeat byte to the parent and wait for its echo
 *   enclave_network report TEXT     send TEXT and a newline to the parent's exit-report port
 *   enclave_network off             power off
 *   enclave_network serve PORT DIAL answer each connection to the enclave's PORT with what the parent's port DIAL
 *                                   sends; DIAL 0: with "inside" and a newline
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int own_cid(void)
{
    int cid = 0;
    FILE *self = fopen("/run/enclavekit/registry/self.json", "r");
    if (!self || fscanf(self, "{\"cid\": %d}", &cid) != 1)
        exit(2);
    fclose(self);
    return cid;
}

static int try_dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (!connect(fd, (struct sockaddr *)&address, sizeof address))
        return fd;
    close(fd);
    return -1;
}

static int dial_parent(int port)
{
    char path[100];
    snprintf(path, sizeof path, "/run/enclavekit/fabric/%d/parent/%d.sock", own_cid(), port);
    int fd = try_dial(path);
    if (fd < 0) {
        snprintf(path, sizeof path, "/run/enclavekit/fabric/3/%d.sock", port);
        fd = try_dial(path);
    }
    return fd;
}

static int serve(int port, int upstream)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "/run/enclavekit/fabric/%d/%d.sock", own_cid(), port);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8))
        return 1;
    for (;;) {
        char data[256] = "inside\n";
        ssize_t size = strlen(data);
        int client = accept(listener, 0, 0);
        if (client < 0)
            return 1;
        if (upstream) {
            int fd = dial_parent(upstream);
            size = fd < 0 ? 0 : read(fd, data, sizeof data);
            close(fd);
        }
        if (size > 0 && send(client, data, size, MSG_NOSIGNAL) < 0)
            perror("send");
        close(client);
    }
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "heartbeat")) {
        unsigned char byte = 0xb7;
        int fd = dial_parent(9000);
        return write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1;
    }
    if (!strcmp(verb, "report") && argc > 2) {
        int fd = dial_parent(9002);
        return write(fd, argv[2], strlen(argv[2])) < 0 || write(fd, "\n", 1) != 1;
    }
    if (!strcmp(verb, "off"))
        return reboot(RB_POWER_OFF);
    if (!strcmp(verb, "serve") && argc > 3)
        return serve(atoi(argv[2]), atoi(argv[3]));
    return 64;
}
