// SPDX-License-Identifier: Apache-2.0
/*
 * PID 1 of an enclave that runs one program and nothing else.
 *
 * Keeps the contract of the init that AWS packs, so that an image of ours boots where nitro-cli's do:
 *
 *   /nsm.ko        loaded if it is there, then removed
 *   heartbeat      0xB7 to vsock CID 3 port 9000, which must come back; else the enclave ends
 *   /cmd           the program and its arguments, one per line
 *   /env           its environment, one NAME=value per line
 *   /rootfs        becomes its root, with /dev /proc /sys /run /tmp mounted
 *
 * and two files that AWS's init does not know and leaves alone:
 *
 *   /workdir       one line, where the program starts (default: /)
 *   /user          one line, UID GID [GROUP...] in numbers (default: 0 0)
 *
 * Orphans are reaped; when the program has ended, its status goes to the console and the enclave ends by a reboot.
 * Whatever cannot be done ends the enclave: a half-made machine runs nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define HEARTBEAT 0xB7
#define PARENT_CID 3
#define HEARTBEAT_PORT 9000
#ifndef DEV_FILESYSTEM
#define DEV_FILESYSTEM "devtmpfs" /* tests in user namespaces, which may not mount it, take another */
#endif
#define MAX_FILE (1 << 20) /* of /cmd and /env; execve takes two megabytes of both together */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static void end(void)
{
	sync();
	reboot(RB_AUTOBOOT);
	/* no right to reboot: in namespaces, for tests; there the end of PID 1 ends everything */
	_exit(1);
}

static void say(const char *format, ...)
{
	char line[1024];
	va_list args;
	int size;

	va_start(args, format);
	size = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (size < 0)
		return;
	if (size > (int)sizeof(line) - 2)
		size = sizeof(line) - 2;
	line[size] = '\n';
	/* one write: lines of the program must not get in between */
	if (write(STDERR_FILENO, line, size + 1) < 0)
		return;
}

static void __attribute__((noreturn)) fail(const char *what, const char *name)
{
	say("init: cannot %s %s: %s", what, name, strerror(errno));
	end();
	_exit(1);
}

static void mount_at(const char *source, const char *target, const char *type, unsigned long flags, const char *data)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		fail("make directory", target);
	/* EBUSY: the kernel has mounted it already, which devtmpfs may be */
	if (mount(source, target, type, flags, data) < 0 && errno != EBUSY)
		fail("mount", target);
}

static void open_console(void)
{
	int console = open("/dev/console", O_RDWR | O_NOCTTY);

	if (console < 0)
		return; /* outside debug mode nobody reads it; the kernel has opened what there is */
	dup2(console, STDIN_FILENO);
	dup2(console, STDOUT_FILENO);
	dup2(console, STDERR_FILENO);
	if (console > STDERR_FILENO)
		close(console);
}

static void load_nsm(void)
{
	int module = open("/nsm.ko", O_RDONLY | O_CLOEXEC);

	if (module < 0) {
		if (errno == ENOENT)
			return; /* Linux 6.8 and later have the driver inside */
		fail("open", "/nsm.ko");
	}
	if (syscall(SYS_finit_module, module, "", 0) < 0 && errno != EEXIST)
		fail("load", "/nsm.ko");
	close(module);
	unlink("/nsm.ko");
}

static int connect_parent(void)
{
#ifdef HEARTBEAT_UNIX /* for tests: machines without Nitro have no parent to answer */
	struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = HEARTBEAT_UNIX};
	int parent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
#else
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = PARENT_CID, .svm_port = HEARTBEAT_PORT};
	int parent = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
#endif

	if (parent < 0 || connect(parent, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("connect to", "the parent's heartbeat, vsock 3:9000");
	return parent;
}

static void send_heartbeat(void)
{
	unsigned char byte = HEARTBEAT;
	int parent = connect_parent();
	ssize_t size;

	do
		size = write(parent, &byte, 1);
	while (size < 0 && errno == EINTR);
	if (size != 1)
		fail("send", "the heartbeat");
	byte = 0;
	do
		size = read(parent, &byte, 1);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		fail("read", "the heartbeat's answer");
	if (size != 1 || byte != HEARTBEAT) {
		say("init: cannot accept the heartbeat's answer: it is not 0xB7");
		end();
	}
	close(parent);
}

/* Return the lines of a file, NULL if there is none; the array ends with NULL. The file is removed. */
static char **take_lines(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	size_t size = 0, count = 0, capacity = 16;
	char *text, *line, *next, **lines;
	ssize_t got;

	if (file < 0) {
		if (errno == ENOENT)
			return NULL;
		fail("open", path);
	}
	text = malloc(MAX_FILE + 1);
	lines = malloc(capacity * sizeof(*lines));
	if (!text || !lines)
		fail("read", path);
	while ((got = read(file, text + size, MAX_FILE - size)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			fail("read", path);
		size += got;
		if (size == MAX_FILE) {
			errno = EFBIG;
			fail("read", path);
		}
	}
	text[size] = '\0';
	for (line = text; line < text + size; line = next) {
		next = memchr(line, '\n', text + size - line);
		next = next ? next : text + size;
		*next++ = '\0';
		if (count + 2 > capacity) {
			capacity *= 2;
			lines = realloc(lines, capacity * sizeof(*lines));
			if (!lines)
				fail("read", path);
		}
		lines[count++] = line;
	}
	lines[count] = NULL;
	close(file);
	unlink(path);
	return lines;
}

static void enter_root(void)
{
	if (mount("/rootfs", "/rootfs", NULL, MS_BIND, NULL) < 0)
		fail("bind", "/rootfs");
	if (chdir("/rootfs") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		fail("enter", "/rootfs");
}

static void link_at(const char *target, const char *path)
{
	if (symlink(target, path) < 0 && errno != EEXIST)
		fail("link", path);
}

/* cgroup v2 where the kernel has it, else a v1 hierarchy for each controller, as AWS's init does. */
static void mount_cgroups(void)
{
	char line[256], name[64], path[128];
	FILE *controllers;
	int enabled;

	if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0)
		return;
	controllers = fopen("/proc/cgroups", "re");
	if (!controllers)
		return; /* a kernel without cgroups */
	mount_at("cgroup_root", "/sys/fs/cgroup", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755");
	while (fgets(line, sizeof(line), controllers)) {
		if (sscanf(line, "%63s %*d %*d %d", name, &enabled) != 2 || !enabled || name[0] == '#')
			continue;
		snprintf(path, sizeof(path), "/sys/fs/cgroup/%s", name);
		mount_at(name, path, "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, name);
	}
	fclose(controllers);
}

static void mount_all(void)
{
	const unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	mount_at("dev", "/dev", DEV_FILESYSTEM, MS_NOSUID | MS_NOEXEC, NULL);
	mount_at("proc", "/proc", "proc", safe, NULL);
	link_at("/proc/self/fd", "/dev/fd");
	link_at("/proc/self/fd/0", "/dev/stdin");
	link_at("/proc/self/fd/1", "/dev/stdout");
	link_at("/proc/self/fd/2", "/dev/stderr");
	mount_at("tmpfs", "/run", "tmpfs", safe, "mode=0755");
	mount_at("tmpfs", "/tmp", "tmpfs", safe, "mode=1777");
	mount_at("shm", "/dev/shm", "tmpfs", safe, "mode=1777");
	mount_at("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, NULL);
	mount_at("sysfs", "/sys", "sysfs", safe, NULL);
	mount_cgroups();
}

/* AWS's init leaves it down; a program that talks to itself over 127.0.0.1 wants it. */
static void raise_loopback(void)
{
	struct ifreq request = {.ifr_name = "lo"};
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return; /* a kernel without TCP/IP */
	if (ioctl(sock, SIOCGIFFLAGS, &request) == 0) {
		request.ifr_flags |= IFF_UP;
		ioctl(sock, SIOCSIFFLAGS, &request);
	}
	close(sock);
}

static void become_user(const char *text)
{
	gid_t groups[64];
	unsigned long ids[66];
	size_t count = 0, i;
	char *rest;

	while (*text && count < sizeof(ids) / sizeof(*ids)) {
		errno = 0;
		ids[count] = strtoul(text, &rest, 10);
		if (rest == text || errno || ids[count] >= UINT_MAX || (*rest && *rest != ' '))
			break;
		count++;
		for (text = rest; *text == ' '; text++)
			;
	}
	if (*text || count < 2) {
		errno = EINVAL;
		fail("use", "/user");
	}
	for (i = 2; i < count; i++)
		groups[i - 2] = ids[i];
	if (setgroups(count - 2, groups) < 0 || setgid(ids[1]) < 0 || setuid(ids[0]) < 0)
		fail("become the user of", "/user");
}

static const char *find_path(char **env)
{
	for (; env && *env; env++)
		if (strncmp(*env, "PATH=", 5) == 0)
			return *env + 5;
	return DEFAULT_PATH;
}

static void __attribute__((noreturn)) run_program(char **cmd, char **env, char **workdir, char **user, sigset_t *mask)
{
	static char *shell[] = {"sh", NULL}, *empty[] = {"PATH=" DEFAULT_PATH, NULL};

	setsid();
	if (user && user[0])
		become_user(user[0]);
	if (workdir && workdir[0] && chdir(workdir[0]) < 0)
		fail("start in", workdir[0]);
	sigprocmask(SIG_SETMASK, mask, NULL);
	/* argv[0] is looked up where the program itself would look */
	setenv("PATH", find_path(env), 1);
	cmd = cmd && cmd[0] ? cmd : shell;
	execvpe(cmd[0], cmd, env && env[0] ? env : empty);
	say("init: cannot run %s: %s", cmd[0], strerror(errno));
	_exit(errno == ENOENT ? 127 : 126);
}

static int reap(pid_t program)
{
	int status;
	pid_t pid;

	for (;;) {
		pid = wait(&status);
		if (pid == program)
			return status;
		if (pid < 0 && errno != EINTR)
			fail("wait for", "the program");
	}
}

int main(void)
{
	char **cmd, **env, **workdir, **user;
	sigset_t all, before;
	pid_t program;
	int status;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	mount_at("dev", "/dev", DEV_FILESYSTEM, MS_NOSUID | MS_NOEXEC, NULL);
	open_console();
	load_nsm();
	send_heartbeat();
	cmd = take_lines("/cmd");
	env = take_lines("/env");
	workdir = take_lines("/workdir");
	user = take_lines("/user");
	enter_root();
	mount_all();
	raise_loopback();
	program = fork();
	if (program < 0)
		fail("start", "the program");
	if (program == 0)
		run_program(cmd, env, workdir, user, &before);
	status = reap(program);
	if (WIFSIGNALED(status))
		say("init: the program was ended by signal %d", WTERMSIG(status));
	else
		say("init: the program exited with %d", WEXITSTATUS(status));
	end();
	return 0;
}
