# The devices of the arm64 VM, see qemu-x86_64.mak.
CONFIG_EDU=y
CONFIG_EDU_PLUS=y
CONFIG_ARM_VIRT=y
CONFIG_PCIE_PORT=y
# Results and control lines: the machine itself has two lines at most
CONFIG_SERIAL_PCI=y
CONFIG_BOCHS_DISPLAY=y
CONFIG_RTL8139_PCI=y
