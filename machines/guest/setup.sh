#!/bin/bash
# Runs inside the new root file system, after the packages and the files of rootfs/ are in place.
set -eu

useradd --uid 1000 --user-group --create-home --shell /bin/bash agent
# '*' is no password, yet no locked account either: sshd without PAM refuses locked ones.
usermod --password '*' agent
usermod --password '*' root
chmod 0440 /etc/sudoers.d/agent
install -d -o agent -g agent /workspace

# Identity comes from the host at start.
rm -f /etc/ssh/ssh_host_* /etc/hostname /etc/resolv.conf /var/lib/systemd/random-seed /var/lib/dbus/machine-id
: >/etc/machine-id
: >/etc/resolv.conf
printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
printf '/dev/vda / ext4 rw,noatime 0 0\n' >/etc/fstab

# The build's own apt settings (proxies, mirrors) are the build machine's, not the guest's.
rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/apt/sources.list
cat >/etc/apt/sources.list <<SOURCES
deb http://deb.debian.org/debian $RELEASE main
deb http://deb.debian.org/debian $RELEASE-updates main
deb http://deb.debian.org/debian-security $RELEASE-security main
SOURCES

# Nothing that only a long-lived, many-user or metal machine needs.
systemctl --quiet mask \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer man-db.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service systemd-tmpfiles-clean.timer \
    getty.target getty@tty1.service getty-static.service serial-getty@ttyS0.service console-getty.service \
    systemd-logind.service systemd-user-sessions.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-ask-password-wall.path systemd-ask-password-console.path \
    systemd-firstboot.service systemd-repart.service systemd-machine-id-commit.service systemd-boot-system-token.service \
    systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pstore.service systemd-random-seed.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-hwdb-update.service systemd-sysusers.service \
    systemd-journal-flush.service systemd-journal-catalog-update.service systemd-update-done.service \
    systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service systemd-timesyncd.service \
    systemd-remount-fs.service systemd-initctl.socket systemd-journald-audit.socket \
    ldconfig.service cryptsetup.target integritysetup.target veritysetup.target \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount kmod-static-nodes.service
systemctl --quiet disable ssh.service
systemctl --quiet set-default multi-user.target
systemctl --quiet add-wants multi-user.target taskyard-identity.service taskyard-network.service

# Fixed names for the build machine to take out.
mktirfs -o /boot/initrd "$(basename /lib/modules/*)"
mv /boot/vmlinuz-* /boot/kernel
dpkg-query --show --showformat '${Package} ${Version}\n' >/boot/packages
