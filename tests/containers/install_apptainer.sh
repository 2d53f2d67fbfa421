#!/usr/bin/env bash
# Installs Apptainer on Debian 12, which has no package of it, for the tests of images: the package of Debian's unstable
# release with a newer C library in a folder of its own. Run as root. Other systems have a package of Apptainer.
set -euo pipefail

command -v apptainer > /dev/null && exit 0
library=/opt/apptainer-glibc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export DEBIAN_FRONTEND=noninteractive
apt-get install --yes --quiet=2 --no-install-recommends \
    fuse2fs fuse-overlayfs libseccomp2 libsqlite3-0 patchelf squashfs-tools squashfuse uidmap > /dev/null

# Lists and packages of the other releases stay apart from the system's own.
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)
mkdir -p "$work"/{lists/partial,cache/archives/partial,files}
for release in trixie sid; do
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main"
done > "$work/sources.list"
apart=(-o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
apt-get "${apart[@]}" --quiet=2 update
(cd "$work" && apt-get "${apart[@]}" --quiet=2 download apptainer/sid libc6/trixie)

dpkg-deb --extract "$work"/apptainer_*.deb "$work/files"
rm -rf "$library"
dpkg-deb --extract "$work"/libc6_*.deb "$library"
found=$(dirname "$(find "$library" -name 'ld-linux-*.so.2' -path '*/lib/*-linux-gnu/*' | head -n 1)")
for program in usr/bin/apptainer "$(cd "$work/files" && find usr -path '*/apptainer/bin/starter' | head -n 1)"; do
    patchelf --set-interpreter "$(ls "$found"/ld-linux-*.so.2)" --set-rpath "$found:${found#"$library"}" --force-rpath \
        "$work/files/$program"
done
cp -a "$work/files/." /

# A root that lacks some rights, as within a container, can start nothing with all of them.
sed -i 's/^root default capabilities = .*/root default capabilities = no/' /etc/apptainer/apptainer.conf
# Builds run as another user of a namespace.
for file in /etc/subuid /etc/subgid; do
    grep -q '^root:' "$file" 2> /dev/null || echo root:100000:65536 >> "$file"
done
apptainer --version
