#!/bin/sh
# A system that has nothing yet runs the two commands of a development machine: tests/fresh.sh SUITE USER
#
# SUITE is bookworm, trixie or noble; USER is root, or any other name for a user who may call sudo. Needs root, mmdebstrap, the
# distribution's keyring, and 12 GB below $TMPDIR, which are given back. Takes a quarter of an hour on two cores.
set -eu

suite=${1:?say which: bookworm, trixie or noble}
user=${2:-dev}
source=$(cd "$(dirname "$0")/.." && pwd)
root=$(mktemp -d "${TMPDIR:-/tmp}/fastpath-$suite.XXXXXX")
chmod 755 "$root"
unset TMPDIR # there is no such directory in it

end() {
	for name in dev/pts dev sys proc; do
		umount "$root/$name" 2>/dev/null || true
	done
	rm -rf --one-file-system "$root"
}
trap end EXIT

case $suite in
noble)
	mirror=${MIRROR:-http://archive.ubuntu.com/ubuntu}
	key=${KEYRING:-/usr/share/keyrings/ubuntu-archive-keyring.gpg}
	set -- "--keyring=$(dirname "$key")" "deb $mirror noble main universe" "deb $mirror noble-updates main universe"
	;;
*) set -- --keyring=/usr/share/keyrings ;;
esac
echo "== making $suite"
keyring=$1
shift
mmdebstrap --quiet --variant=apt "$keyring" --include=ca-certificates,curl,git,sudo,gcc,libc6-dev,passwd "$suite" "$root" "$@"

for name in proc sys dev dev/pts; do
	mount --bind "/$name" "$root/$name"
done
# What this machine needs to reach the network.
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp -r /usr/local/share/ca-certificates "$root/usr/local/share/" 2>/dev/null || true
chroot "$root" update-ca-certificates >/dev/null

if [ "$user" != root ]; then
	chroot "$root" useradd -m -s /bin/bash "$user"
	echo "$user ALL=(ALL) NOPASSWD: ALL" >"$root/etc/sudoers.d/$user"
fi
home=$(chroot "$root" su - "$user" -c pwd)
git clone -q "$source" "$root$home/fastpath"
cat >"$root$home/go.sh" <<'GO'
set -eu
cd
curl -sSf -o rustup-init https://static.rust-lang.org/rustup/dist/x86_64-unknown-linux-gnu/rustup-init
chmod +x rustup-init
./rustup-init -y --profile minimal >/dev/null 2>&1
. "$HOME/.cargo/env"
cd fastpath
for round in first second; do
	echo "== cargo xtask run, the $round time"
	begun=$(date +%s)
	cargo xtask run
	echo "== it took $(($(date +%s) - begun)) s"
done
echo "== cargo xtask test, one test of each kind"
cargo xtask test --tier=unit
cargo xtask test --tier=guest --kernel=6.12 --filter=mtu::
echo "== fine"
GO
chroot "$root" chown -R "$user:" "$home"
chroot "$root" su - "$user" -c "sh $home/go.sh"
