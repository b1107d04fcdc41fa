#!/bin/bash
# Runs inside the new root file system, after the packages and the files of rootfs/ are in place; RELEASE is set.
set -eu

useradd --uid 1000 --user-group --create-home --shell /bin/bash agent
# '*' is no password, yet no locked account either: sshd without PAM refuses locked ones.
usermod --password '*' agent
# The host's commands run in root's shell. klibc's is dash too, but a program of one piece: it starts in a quarter of the
# time that an emulated machine takes to link the other.
usermod --password '*' --shell /usr/lib/klibc/bin/sh root
chmod 0440 /etc/sudoers.d/agent
install -d -o agent -g agent /workspace

# Identity comes from the host at start, into files in memory.
rm -f /etc/ssh/ssh_host_* /etc/resolv.conf /var/lib/systemd/random-seed /var/lib/dbus/machine-id
ln -sf /run/hostname /etc/hostname
ln -sf /run/hosts /etc/hosts
: >/etc/machine-id
# The redirect, which gives every name an address.
echo 'nameserver 127.0.0.1' >/etc/resolv.conf
# sshd looks at these at every login: at who may not enter by address, and at other mechanisms than keys.
rm -rf /etc/hosts.allow /etc/hosts.deny /etc/gss
# The kernel's command line mounts the root; there is nothing else.
: >/etc/fstab

# How the build machine reaches its mirrors (proxies, certificates) is not how the guest does.
rm -f /etc/apt/apt.conf.d/99build /etc/apt/apt.conf.d/99mmdebstrap

# Generators look for disks, consoles and old start scripts at every boot; all of that is known here.
mkdir -p /etc/systemd/system-generators
for generator in /usr/lib/systemd/system-generators/*; do
    ln -s /dev/null "/etc/systemd/system-generators/$(basename "$generator")"
done

# Nothing that only a long-lived, many-user or metal machine needs.
systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer e2scrub_all.timer fstrim.timer \
    systemd-tmpfiles-clean.timer systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service \
    systemd-sysctl.service systemd-modules-load.service systemd-sysusers.service systemd-firstboot.service \
    systemd-machine-id-commit.service systemd-boot-system-token.service systemd-random-seed.service \
    systemd-journal-flush.service systemd-journal-catalog-update.service systemd-journald-audit.socket \
    systemd-hwdb-update.service systemd-update-done.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-binfmt.service systemd-repart.service systemd-pstore.service \
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-remount-fs.service systemd-initctl.socket \
    systemd-ask-password-wall.path systemd-ask-password-console.path systemd-logind.service \
    systemd-user-sessions.service systemd-networkd.service systemd-resolved.service systemd-timesyncd.service \
    getty.target getty-static.service ldconfig.service kmod-static-nodes.service e2scrub_reap.service \
    cryptsetup.target integritysetup.target veritysetup.target proc-sys-fs-binfmt_misc.automount \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-udev-trigger.service systemd-udev-settle.service
systemctl --quiet set-default multi-user.target
systemctl --quiet add-wants multi-user.target \
    ssh.service taskyard-identity.service taskyard-network.service taskyard-redirect.service

# Fixed names for the build machine to take out.
mktirfs -o /boot/initrd "$(basename /lib/modules/*)"
mv /boot/vmlinuz-* /boot/kernel
dpkg-query --show --showformat '${Package} ${Version}\n' >/boot/packages
