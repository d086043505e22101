/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H

#include <fcntl.h>
#include <stdbool.h>

#include <sys/mman.h>

#include <linux/types.h>
#include <linux/vfio.h>

#include <libvfio/access.h>
#include <libvfio/assert.h>
#include <libvfio/vfio_pci_device.h>

/* Headers may lack this one alone, as a kernel may. */
#ifndef VFIO_DEVICE_PCI_DMABUF_REVOKE
struct vfio_pci_dmabuf_revoke {
	__u32	argsz;
	__s32	dmabuf_fd;
};

#define VFIO_DEVICE_PCI_DMABUF_REVOKE	_IO(VFIO_TYPE, VFIO_BASE + 22)
#endif

/*
 * DMABUFs over parts of a BAR. See access.h for how the functions are named.
 *
 * What a kernel lacks shows in the errno of the first use: -ENOTTY for one of
 * the features, -EINVAL for mapping a DMABUF that is fine otherwise. What a
 * driver lacks is -EOPNOTSUPP for both. The vfio_pci_has_*() functions find out
 * without a side effect. For them any other error is a failure: a test must not
 * be skipped for it.
 */

/**
 * vfio_pci_has_feature() - Tell whether a device's driver knows a feature.
 * @feature: VFIO_DEVICE_FEATURE_*, along with the direction (_GET or _SET)
 */
bool vfio_pci_has_feature(struct vfio_pci_device *device, u32 feature);

/**
 * vfio_pci_has_dmabuf_mmap() - Tell whether exported DMABUFs can be mapped.
 * @index: BAR to try it with, for which export has to work.
 */
bool vfio_pci_has_dmabuf_mmap(struct vfio_pci_device *device, u32 index);

/**
 * vfio_pci_has_revoke_ioctl() - Tell whether the ioctl form of revoke exists.
 */
bool vfio_pci_has_revoke_ioctl(struct vfio_pci_device *device);

/**
 * vfio_pci_ram_bar() - Find a BAR with memory behind it.
 *
 * Such a BAR keeps what is written to it, and writing to it does no harm.
 *
 * Return: The index of the BAR, -1 if the device is not known to have one.
 */
int vfio_pci_ram_bar(struct vfio_pci_device *device);

/**
 * __vfio_pci_dmabuf_export() - Export ranges of a BAR as one DMABUF.
 * @index: BAR
 * @open_flags: As for open(2)
 * @ranges: What to export, in the order in which it appears in the DMABUF
 *
 * Return: The new fd, -errno on failure.
 */
int __vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			     u32 open_flags,
			     const struct vfio_region_dma_range *ranges,
			     u32 nr_ranges);

int vfio_pci_dmabuf_export(struct vfio_pci_device *device, u32 index,
			   u32 open_flags,
			   const struct vfio_region_dma_range *ranges,
			   u32 nr_ranges);

/* The common case: one range, for reading and writing. */
static inline int vfio_pci_dmabuf_export_range(struct vfio_pci_device *device,
					       u32 index, u64 offset, u64 length)
{
	struct vfio_region_dma_range range = {
		.offset = offset,
		.length = length,
	};

	return vfio_pci_dmabuf_export(device, index, O_RDWR | O_CLOEXEC, &range, 1);
}

/**
 * __vfio_pci_dmabuf_revoke() - Take back what was exported, for good.
 *
 * Return: 0 on success, -errno on failure.
 */
int __vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd);

static inline void vfio_pci_dmabuf_revoke(struct vfio_pci_device *device, int dmabuf_fd)
{
	VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(device, dmabuf_fd), 0);
}

/* The same through VFIO_DEVICE_PCI_DMABUF_REVOKE instead of the feature. */
int __vfio_pci_dmabuf_revoke_ioctl(struct vfio_pci_device *device, int dmabuf_fd);

/**
 * __vfio_pci_dmabuf_memattr() - Set the memory attribute of later mappings.
 * @memattr: VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_*
 *
 * Return: 0 on success, -errno on failure.
 */
int __vfio_pci_dmabuf_memattr(struct vfio_pci_device *device, int dmabuf_fd,
			      u32 memattr);

static inline void vfio_pci_dmabuf_memattr(struct vfio_pci_device *device,
					   int dmabuf_fd, u32 memattr)
{
	VFIO_ASSERT_EQ(__vfio_pci_dmabuf_memattr(device, dmabuf_fd, memattr), 0);
}

/**
 * __dmabuf_map() - Map a part of a DMABUF, or of any other file, shared.
 *
 * Return: 0 with the address in @vaddr, -errno on failure.
 */
int __dmabuf_map(int fd, u64 offset, u64 size, int prot, void **vaddr);

static inline void *dmabuf_map(int fd, u64 offset, u64 size)
{
	void *vaddr;

	VFIO_ASSERT_EQ(__dmabuf_map(fd, offset, size, PROT_READ | PROT_WRITE, &vaddr), 0,
		       "Failed to map 0x%lx bytes at 0x%lx\n", size, offset);
	return vaddr;
}

static inline void dmabuf_unmap(void *vaddr, u64 size)
{
	VFIO_ASSERT_EQ(munmap(vaddr, size), 0);
}

/**
 * maps_ahead() - Tell whether the kernel maps ahead of a walk through small pages.
 * @fd: A DMABUF, or a device
 * @offset: Of 128 KiB that can be mapped and read from
 *
 * A sign of a kernel that has all that came before it, such as to look for a place
 * that suits huge pages, which cannot be told from not doing it right.
 *
 * Return: Whether it does, false as well if there is no way to tell.
 */
bool maps_ahead(int fd, u64 offset);

/**
 * dmabuf_count() - How many DMABUFs there are on this machine.
 *
 * Needs debugfs.
 *
 * Return: The number, -1 if there is no way to tell.
 */
long dmabuf_count(void);

/**
 * fdinfo_get() - Look up a line of the fdinfo of a DMABUF or of any other file.
 * @key: What is in front of the colon
 * @value: Where to store what is behind it, "" if there is no such line
 * @size: Of @value, which has to be large enough
 *
 * Return: Whether there is such a line.
 */
bool fdinfo_get(int fd, const char *key, char *value, size_t size);

/**
 * __iommu_map_dmabuf() - Let the devices behind an IOAS reach a DMABUF.
 * @iommu: Has to be of MODE_IOMMUFD, others cannot do that
 * @offset: Of the part to map, in the DMABUF
 * @iova: Where to map it
 * @flags: IOMMU_IOAS_MAP_READABLE, IOMMU_IOAS_MAP_WRITEABLE
 *
 * Return: 0 on success, -errno on failure.
 */
int __iommu_map_dmabuf(struct iommu *iommu, int dmabuf_fd, u64 offset, u64 size,
		       iova_t iova, u32 flags);

/* Undo __iommu_map_dmabuf(). Has to be done for a revoked DMABUF as well. */
void iommu_unmap_dmabuf(struct iommu *iommu, iova_t iova, u64 size);

/**
 * fd_send() - Pass a file descriptor to the process at the socket's other end.
 * @value: Passed along, for the receiver to know what the fd is.
 */
void fd_send(int socket, int fd, u32 value);

/**
 * __fd_receive() - Receive what fd_send() sent.
 *
 * Return: The new fd, -EPIPE if the sender has closed its end.
 */
int __fd_receive(int socket, u32 *value);

static inline int fd_receive(int socket, u32 *value)
{
	int fd = __fd_receive(socket, value);

	VFIO_ASSERT_GE(fd, 0);
	return fd;
}

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_DMABUF_H */
