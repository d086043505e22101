// SPDX-License-Identifier: GPL-2.0-only
/*
 * Lend a page of a BAR to another process, and take it back.
 *
 * This is the example of Documentation/driver-api/vfio-pci-dmabuf.rst. It uses
 * no library for VFIO but its ioctls, and tells of each step whether it held.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/vfio.h>

#include "kselftest.h"

static long page_size;

/* A message that carries one fd */
union fd_control {
	char buf[CMSG_SPACE(sizeof(int))];
	struct cmsghdr cmsg;
};

static struct msghdr fd_message(union fd_control *control)
{
	static char byte;
	static struct iovec iov = { .iov_base = &byte, .iov_len = 1 };

	return (struct msghdr) {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(*control),
	};
}

/*
 * The subordinate has a socket, and what comes through it
 */

static int slice_fd = -1;

static int receive_fd(int sock)
{
	union fd_control control = {};
	struct msghdr msg = fd_message(&control);
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&msg))
		memcpy(&fd, CMSG_DATA(&control.cmsg), sizeof(fd));
	return fd;
}

/* Any access to a slice may be the first one after it was taken back */
static void on_sigbus(int signo)
{
	void *again = mmap(NULL, page_size, PROT_READ, MAP_SHARED, slice_fd, 0);

	_exit(again == MAP_FAILED && errno == ENODEV ? 0 : 1);
}

static void subordinate(int sock)
{
	__u32 *slice, value;
	void *more;

	slice_fd = receive_fd(sock);
	signal(SIGBUS, on_sigbus);

	slice = mmap(NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		     slice_fd, 0);
	if (slice == MAP_FAILED)
		_exit(2);

	/* There is nothing behind it */
	more = mmap(NULL, page_size, PROT_READ, MAP_SHARED, slice_fd, page_size);
	if (more != MAP_FAILED || errno != EINVAL)
		_exit(3);

	value = READ_ONCE(*slice);
	if (write(sock, &value, sizeof(value)) != sizeof(value))
		_exit(4);

	/* From here on it listens to nobody.  Give up if that does not end */
	alarm(60);
	for (;;)
		READ_ONCE(*slice);
}

/*
 * The primary has the device
 */

static void send_fd(int sock, int fd)
{
	union fd_control control = {
		.cmsg.cmsg_level = SOL_SOCKET,
		.cmsg.cmsg_type = SCM_RIGHTS,
		.cmsg.cmsg_len = CMSG_LEN(sizeof(fd)),
	};
	struct msghdr msg = fd_message(&control);

	memcpy(CMSG_DATA(&control.cmsg), &fd, sizeof(fd));
	if (sendmsg(sock, &msg, 0) != 1)
		ksft_exit_fail_perror("sendmsg");
}

static int open_device(const char *bdf)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	char path[128];
	glob_t names;
	int device;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio*",
		 bdf);
	if (glob(path, 0, NULL, &names))
		ksft_exit_skip("%s has no vfio device\n", bdf);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s",
		 strrchr(names.gl_pathv[0], '/') + 1);
	globfree(&names);

	device = open(path, O_RDWR | O_CLOEXEC);
	bind.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (device < 0 || bind.iommufd < 0)
		ksft_exit_skip("%s and /dev/iommu: %m\n", path);
	if (ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		ksft_exit_fail_perror(path);
	return device;
}

/*
 * The last BAR that can be mapped and has no capabilities, which the one with
 * the MSI-X table has. A page with that table is never to be lent.
 */
static struct vfio_region_info find_bar(int device)
{
	int bar;

	for (bar = VFIO_PCI_BAR5_REGION_INDEX; bar >= 0; bar--) {
		struct vfio_region_info info = {
			.argsz = sizeof(info), .index = bar,
		};

		if (!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info) &&
		    info.flags & VFIO_REGION_INFO_FLAG_MMAP &&
		    !(info.flags & VFIO_REGION_INFO_FLAG_CAPS) &&
		    info.size >= page_size)
			return info;
	}
	ksft_exit_skip("no BAR has a page to lend\n");
}

static int feature(int device, __u32 flags, const void *data, size_t size)
{
	__aligned_u64 buf[16];
	struct vfio_device_feature *arg = (void *)buf;

	arg->argsz = sizeof(*arg) + size;
	arg->flags = flags;
	memcpy(arg->data, data, size);
	return ioctl(device, VFIO_DEVICE_FEATURE, arg);
}

static int export_page(int device, int bar)
{
	struct {
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} arg = {
		.dma_buf.region_index = bar,
		.dma_buf.open_flags = O_RDWR | O_CLOEXEC,
		.dma_buf.nr_ranges = 1,
		.range.offset = 0,
		.range.length = page_size,
	};

	return feature(device, VFIO_DEVICE_FEATURE_GET |
			       VFIO_DEVICE_FEATURE_DMA_BUF, &arg, sizeof(arg));
}

static int revoke_page(int device, int fd)
{
	struct vfio_device_feature_dma_buf_revoke arg = { .dmabuf_fd = fd };

	return feature(device, VFIO_DEVICE_FEATURE_SET |
			       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, &arg,
		       sizeof(arg));
}

int main(int argc, char *argv[])
{
	const char *bdf = argc > 1 ? argv[1] : getenv("VFIO_SELFTESTS_BDF");
	int device, fd, sock[2], status;
	struct vfio_region_info info;
	__u32 here, there;
	pid_t pid;

	page_size = sysconf(_SC_PAGESIZE);

	/* Before anything is open that the subordinate should not have */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock))
		ksft_exit_fail_perror("socketpair");
	pid = fork();
	if (pid < 0)
		ksft_exit_fail_perror("fork");
	if (!pid) {
		close(sock[0]);
		subordinate(sock[1]);
	}
	close(sock[1]);

	ksft_print_header();
	if (!bdf)
		ksft_exit_skip("usage: %s BDF\n", argv[0]);
	device = open_device(bdf);
	if (feature(device, VFIO_DEVICE_FEATURE_PROBE |
			    VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, "", 0))
		ksft_exit_skip("the kernel or the driver cannot revoke\n");
	info = find_bar(device);
	ksft_set_plan(5);

	fd = export_page(device, info.index);
	ksft_test_result(fd >= 0, "export page 0 of BAR %u\n", info.index);
	send_fd(sock[0], fd);

	if (pread(device, &here, sizeof(here), info.offset) != sizeof(here))
		ksft_exit_fail_perror("pread");
	ksft_test_result(read(sock[0], &there, sizeof(there)) == sizeof(there) &&
			 there == here, "the subordinate reads 0x%x in it, too\n",
			 here);

	/* If the page makes the device do something, stop that here */
	ksft_test_result(!revoke_page(device, fd), "take the page back\n");

	/* Not that it was asked to do anything about that */
	ksft_test_result(waitpid(pid, &status, 0) == pid && !status,
			 "the subordinate has lost it\n");

	ksft_test_result(export_page(device, info.index) >= 0,
			 "the page can be lent anew\n");
	ksft_finished();
}
