# The devices of the VM and of the qtests, and not the 200 others of a PC, which
# are a fifth of what it takes to compile QEMU.
#
# The device of this repository, and the one that it is like
CONFIG_EDU=y
CONFIG_EDU_PLUS=y
# Machines: the VM, and what edu-plus has to refuse
CONFIG_Q35=y
CONFIG_I440FX=y
CONFIG_HPET=y
CONFIG_PCIE_PORT=y
# IOMMUs
CONFIG_VTD=y
CONFIG_AMD_IOMMU=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_IOMMU=y
# Devices for which libvfio has no driver; the second one has a BAR below a page
CONFIG_BOCHS_DISPLAY=y
CONFIG_RTL8139_PCI=y
