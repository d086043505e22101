/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PROCESS_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PROCESS_H

#include <stdbool.h>

#include <sys/types.h>

#include <linux/types.h>

#include <libvfio/assert.h>

/*
 * Other processes that take part in a test.
 */

/*
 * How long it may take, on a slow and busy machine, what waits neither for
 * another process nor for a fence. The kernel waits longer than this for those.
 */
#define PROMPT_MS	5000

/* Microseconds and milliseconds of CLOCK_MONOTONIC. */
u64 now_us(void);

static inline u64 now_ms(void)
{
	return now_us() / 1000;
}

/**
 * number_from_env() - What the environment asks a test for.
 * @otherwise: If there is no such variable
 *
 * It is a failure if the variable is there, but is no number.
 */
u64 number_from_env(const char *name, u64 otherwise);

/**
 * process_fork() - fork(), with a child that does not outlive its parent.
 *
 * What a child has inherited, such as the device, is needed by the next test if
 * this one fails.
 */
pid_t process_fork(void);

/**
 * __vfio_pci_rebind() - Take a device from its driver, and give it back.
 *
 * Nobody may have the device open.
 *
 * Return: 0, -ETIMEDOUT if something keeps the driver from letting go of it, or
 * the status of the child that does it.
 */
int __vfio_pci_rebind(const char *bdf);

/* How many fds the process has, in terms that are good for a comparison. */
int process_count_fds(void);

/* Wait for a child that ends by itself, and return what it gave to _exit(). */
int process_exit_status(pid_t pid);

/**
 * __process_wait() - Wait for a child to end, but not for ever.
 * @status: As for waitpid(2)
 *
 * Return: 0, -ETIMEDOUT if the child has not ended in time.
 */
int __process_wait(pid_t pid, int *status, int timeout_ms);

/**
 * process_blocks() - Wait until a child or thread sleeps where only a kill can wake it.
 *
 * Return: True if it does, false if it has ended instead. It is a failure that it
 * does neither.
 */
bool process_blocks(pid_t pid);

/*
 * A subordinate is a process that was lent a DMABUF. It runs the program of the
 * test, but shares nothing with it other than a socket, by which it gets a
 * DMABUF and is told what to do.
 */
struct subordinate {
	pid_t pid;
	int socket;
};

enum subordinate_operation {
	/* Receive the DMABUF that follows as a message of its own. */
	SUBORDINATE_RECEIVE,
	/* Close it. */
	SUBORDINATE_CLOSE,
	/* Map its first @size bytes: 0 or -errno. */
	SUBORDINATE_MAP,
	SUBORDINATE_UNMAP,
	/* Read the start of the map: 0 or -errno. */
	SUBORDINATE_READ,
	/* Write @value there: 0 or -errno. */
	SUBORDINATE_WRITE,
	/*
	 * Read over and over, without looking at the socket, until it fails. Or,
	 * if @value is not 0, write a count to that offset for others to see.
	 */
	SUBORDINATE_SPIN,
	/* Map @size bytes of the DMABUF into an IOAS: 0 or -errno. */
	SUBORDINATE_IMPORT,
	SUBORDINATE_UNIMPORT,
	/* Open one more O_PATH descriptor of it: 0 or -errno. */
	SUBORDINATE_PIN,
	/* Close all of those. */
	SUBORDINATE_UNPIN,
	/* Whatever the program's own function does. */
	SUBORDINATE_OTHER,
};

/* How long a subordinate may take to answer, if nothing else is said. */
#define SUBORDINATE_TIMEOUT_S	20

/* What main() finds in argv[1] if it is that of a subordinate, and its socket's fd. */
#define SUBORDINATE_ARG		"--subordinate"
#define SUBORDINATE_SOCKET	3

/**
 * subordinate_main() - All that main() has to do in a subordinate.
 * @other: Function for SUBORDINATE_OTHER, called with the DMABUF, or -1, and
 *	what the request has
 */
int subordinate_main(int (*other)(int fd, u64 size, u32 value));

void subordinate_start(struct subordinate *sub);

/**
 * subordinate_exec() - Have the calling process, a child, run a program's main() anew.
 * @socket: All that it keeps, other than standard input, output and error: neither
 *	fds nor memory of its parent.
 * @arg: What it finds in argv[2], or NULL.
 *
 * Does not return.
 */
void subordinate_exec(int socket, const char *arg);

/**
 * subordinate_fork() - Start one that has the maps of its parent, but no fds.
 * @vaddr: The map that it is to access
 */
void subordinate_fork(struct subordinate *sub, void *vaddr);

/* Wait longer, or not as long, for what it answers from now on. */
void subordinate_set_timeout(struct subordinate *sub, int seconds);

/* Let it end by itself, or find that it has. Returns as waitpid() does. */
int subordinate_end(struct subordinate *sub);

/* Make a request without waiting for the answer. */
void subordinate_ask_only(struct subordinate *sub, enum subordinate_operation operation,
			  u64 size, u32 value);

/* Wait for the answer to a request; @value, if not NULL, is what was read. */
int subordinate_answer(struct subordinate *sub, u32 *value);

static inline int subordinate_ask(struct subordinate *sub,
				  enum subordinate_operation operation, u64 size, u32 value)
{
	subordinate_ask_only(sub, operation, size, value);
	return subordinate_answer(sub, NULL);
}

static inline int subordinate_read(struct subordinate *sub, u32 *value)
{
	subordinate_ask_only(sub, SUBORDINATE_READ, 0, 0);
	return subordinate_answer(sub, value);
}

/* Hand over a DMABUF. */
void subordinate_give(struct subordinate *sub, int fd);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_PROCESS_H */
