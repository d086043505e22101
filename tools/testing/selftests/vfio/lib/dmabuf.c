// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/overflow.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

/* Devices that are known to have a BAR with memory behind it. */
static const struct {
	u16 vendor;
	u16 device;
	int bar;
} ram_bars[] = {
	{ 0x1234, 0x11e8, 1 },	/* edu-plus; QEMU's edu has no such BAR. */
	{ 0x1234, 0x1111, 0 },	/* QEMU bochs-display and VGA */
};

int vfio_pci_ram_bar(struct vfio_pci_device *device)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(ram_bars); i++) {
		if (!vfio_pci_device_match(device, ram_bars[i].vendor, ram_bars[i].device))
			continue;

		return device->bars[ram_bars[i].bar].vaddr ? ram_bars[i].bar : -1;
	}

	return -1;
}

static int vfio_pci_feature(struct vfio_pci_device *device, u32 flags,
			    void *data, size_t size)
{
	int ret = vfio_device_feature_ioctl(device->fd, flags, data, size);

	return ret < 0 ? -errno : ret;
}

bool vfio_pci_has_feature(struct vfio_pci_device *device, u32 feature)
{
	int r = vfio_pci_feature(device, VFIO_DEVICE_FEATURE_PROBE | feature, NULL, 0);

	VFIO_ASSERT_TRUE(!r || r == -ENOTTY || r == -EOPNOTSUPP,
			 "Probing feature 0x%x: %d\n", feature, r);
	return !r;
}

bool vfio_pci_has_dmabuf_mmap(struct vfio_pci_device *device, u32 index)
{
	long size = getpagesize();
	void *vaddr;
	int fd, r;

	fd = vfio_pci_dmabuf_export_range(device, index, 0, size);
	r = __dmabuf_map(fd, 0, size, PROT_READ, &vaddr);
	VFIO_ASSERT_EQ(close(fd), 0);

	VFIO_ASSERT_TRUE(!r || r == -EINVAL || r == -EOPNOTSUPP, "Mapping: %d\n", r);
	if (r)
		return false;

	dmabuf_unmap(vaddr, size);
	return true;
}

bool vfio_pci_has_revoke_ioctl(struct vfio_pci_device *device)
{
	return __vfio_pci_dmabuf_revoke_ioctl(device, -1) != -ENOTTY;
}

int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			     u32 open_flags,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges)
{
	struct vfio_device_feature_dma_buf *dma_buf;
	size_t size = struct_size(dma_buf, dma_ranges, nr_ranges);
	int ret;

	dma_buf = calloc_assert(1, size);
	dma_buf->region_index = index;
	dma_buf->open_flags = open_flags;
	dma_buf->nr_ranges = nr_ranges;
	memcpy(dma_buf->dma_ranges, ranges, nr_ranges * sizeof(*ranges));

	ret = vfio_pci_feature(device, VFIO_DEVICE_FEATURE_GET |
				       VFIO_DEVICE_FEATURE_DMA_BUF, dma_buf, size);
	free(dma_buf);
	return ret;
}

int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			   u32 open_flags,
			   const struct vfio_region_dma_range *ranges,
			   u32 nr_ranges)
{
	int fd;

	fd = __vfio_pci_dmabuf_export(device, index, open_flags, ranges, nr_ranges);
	VFIO_ASSERT_GE(fd, 0, "Failed to export %u range(s) of BAR %u\n", nr_ranges, index);
	return fd;
}

int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	struct vfio_device_feature_dma_buf_revoke revoke = {
		.dmabuf_fd = dmabuf_fd,
	};

	return vfio_pci_feature(device, VFIO_DEVICE_FEATURE_SET |
					VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
				&revoke, sizeof(revoke));
}

int __vfio_pci_dmabuf_revoke_ioctl(struct vfio_pci_device *device, int dmabuf_fd)
{
	struct vfio_pci_dmabuf_revoke revoke = {
		.argsz = sizeof(revoke),
		.dmabuf_fd = dmabuf_fd,
	};

	if (ioctl(device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &revoke))
		return -errno;

	return 0;
}

int __vfio_pci_dmabuf_memattr(struct vfio_pci_device *device, int dmabuf_fd,
			      u32 memattr)
{
	struct vfio_device_feature_dma_buf_memattr args = {
		.dmabuf_fd = dmabuf_fd,
		.memattr = memattr,
	};

	return vfio_pci_feature(device, VFIO_DEVICE_FEATURE_SET |
					VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR,
				&args, sizeof(args));
}

int __dmabuf_map(int fd, u64 offset, u64 size, int prot, void **vaddr)
{
	*vaddr = mmap(NULL, size, prot, MAP_SHARED, fd, offset);

	return *vaddr == MAP_FAILED ? -errno : 0;
}

bool maps_ahead(int fd, u64 offset)
{
	void *vaddr;
	long count;

	if (getpagesize() != SZ_4K)
		return false;

	vaddr = mmap_reserve(SZ_128K, SZ_2M, SZ_64K - SZ_4K);
	VFIO_ASSERT_EQ(mmap(vaddr, SZ_128K, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset),
		       vaddr);
	mmio_read32(vaddr);
	mmio_read32(vaddr + SZ_4K);
	count = __page_mapping_count_all(vaddr, SZ_128K);
	dmabuf_unmap(vaddr, SZ_128K);
	return count > 2;
}

long dmabuf_count(void)
{
	long count = -1;
	char line[1024];
	FILE *file;

	file = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	if (!file)
		return -1;

	while (fgets(line, sizeof(line), file))
		sscanf(line, "Total %ld objects", &count);

	fclose(file);
	return count;
}

bool fdinfo_get(int fd, const char *key, char *value, size_t size)
{
	size_t length = strlen(key);
	char path[64], line[256];
	bool found = false;
	FILE *file;

	value[0] = '\0';
	snprintf_assert(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);

	while (!found && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, length) || strncmp(line + length, ":\t", 2))
			continue;

		line[strcspn(line, "\n")] = '\0';
		snprintf_assert(value, size, "%s", line + length + 2);
		found = true;
	}

	VFIO_ASSERT_EQ(fclose(file), 0);
	return found;
}

int __iommu_map_dmabuf(struct iommu *iommu, int dmabuf_fd, u64 offset, u64 size,
		       iova_t iova, u32 flags)
{
	struct iommu_ioas_map_file args = {
		.size = sizeof(args),
		.flags = flags | IOMMU_IOAS_MAP_FIXED_IOVA,
		.ioas_id = iommu->ioas_id,
		.fd = dmabuf_fd,
		.start = offset,
		.length = size,
		.iova = iova,
	};

	if (ioctl(iommu->iommufd, IOMMU_IOAS_MAP_FILE, &args))
		return -errno;

	return 0;
}

void iommu_unmap_dmabuf(struct iommu *iommu, iova_t iova, u64 size)
{
	struct iommu_ioas_unmap args = {
		.size = sizeof(args),
		.ioas_id = iommu->ioas_id,
		.iova = iova,
		.length = size,
	};

	ioctl_assert(iommu->iommufd, IOMMU_IOAS_UNMAP, &args);
}

/* A message that carries one fd, and room for it. */
struct fd_message {
	struct msghdr header;
	struct iovec iov;
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
};

static void fd_message_init(struct fd_message *message, u32 *value)
{
	*message = (struct fd_message) {};
	message->iov.iov_base = value;
	message->iov.iov_len = sizeof(*value);
	message->header.msg_iov = &message->iov;
	message->header.msg_iovlen = 1;
	message->header.msg_control = &message->control;
	message->header.msg_controllen = sizeof(message->control);
}

void fd_send(int socket, int fd, u32 value)
{
	struct fd_message message;
	struct cmsghdr *cmsg;

	fd_message_init(&message, &value);

	cmsg = CMSG_FIRSTHDR(&message.header);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));

	VFIO_ASSERT_EQ(sendmsg(socket, &message.header, 0), sizeof(value));
}

int __fd_receive(int socket, u32 *value)
{
	struct fd_message message;
	struct cmsghdr *cmsg;
	ssize_t size;
	int fd;

	fd_message_init(&message, value);

	size = recvmsg(socket, &message.header, MSG_CMSG_CLOEXEC);
	if (!size)
		return -EPIPE;

	VFIO_ASSERT_EQ(size, sizeof(*value));

	cmsg = CMSG_FIRSTHDR(&message.header);
	VFIO_ASSERT_NOT_NULL(cmsg, "No fd in the message\n");
	VFIO_ASSERT_EQ(cmsg->cmsg_type, SCM_RIGHTS);
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}
