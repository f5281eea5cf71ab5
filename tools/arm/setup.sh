#!/usr/bin/env bash
# Makes an aarch64 Python with onnxruntime that runs on an x86-64 Debian or Ubuntu, under qemu-user.
#
#   tools/arm/setup.sh DEST [PIP]
#
# Needs the packages qemu-user (not qemu-user-static: it takes no plugins) and gcc, and a pip of 23 or
# newer for the wheels. Nothing is installed on the host: Debian's arm64 packages are unpacked into
# DEST, some 250 MB. DEST/python CPU SCRIPT then runs a script as on CPU: a53, a76 or i8mm; with
# COUNT=1 it counts instructions (count.c).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dest=$(realpath -m "${1:?usage: setup.sh DEST [PIP]}")
pip=${2:-pip}
for tool in qemu-aarch64 gcc apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || {
        echo "$tool is missing; on Debian: apt-get install qemu-user gcc" >&2
        exit 1
    }
done
[ -e "$dest/ready" ] && exit 0
# Only what an earlier, broken-off run has left is cleared.
if [ -n "$(ls -A "$dest" 2>/dev/null)" ] && [ ! -e "$dest/apt/status" ]; then
    echo "$dest is not empty and not an emulator: name another folder" >&2
    exit 1
fi
rm -rf "$dest"
mkdir -p "$dest"/apt/{state/lists/partial,cache/archives/partial} "$dest"/{root/opt/site,wheels}

# A package state of its own that knows no installed package: so every dependency is downloaded.
: >"$dest/apt/status"
apt=(apt-get -q -y
    -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false
    -o Dir::State="$dest/apt/state" -o Dir::State::status="$dest/apt/status"
    -o Dir::Cache="$dest/apt/cache" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
"${apt[@]}" update
version=$(apt-cache "${apt[@]:3}" search --names-only '^python3\.[0-9]+-minimal$' |
    sed -n 's/^python\(3\.[0-9]*\)-minimal.*/\1/p' | sort -V | tail -1)
"${apt[@]}" install --download-only \
    "python$version-minimal" "libpython$version-stdlib" libstdc++6 libgcc-s1 libgomp1
for package in "$dest"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$dest/root"; done

"$pip" download -q -d "$dest/wheels" -c "$here/../constraints.txt" --only-binary=:all: \
    --python-version "$version" --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 onnxruntime numpy
for wheel in "$dest"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$dest/root/opt/site"; done

# onnxruntime reads /proc/cpuinfo to choose its kernels. qemu below 8.2 shows the host's, which it
# cannot parse; but qemu -L PREFIX opens PREFIX/proc/cpuinfo instead where there is one.
view() { # name, part number, features
    local prefix=$dest/view-$1
    mkdir -p "$prefix/proc"
    for folder in bin etc lib opt sbin usr var; do ln -sfn "../root/$folder" "$prefix/$folder"; done
    for core in 0 1; do
        printf 'processor\t: %s\nBogoMIPS\t: 50.00\nFeatures\t: %s\nCPU implementer\t: 0x41\n' "$core" "$3"
        printf 'CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$2"
    done >"$prefix/proc/cpuinfo"
}
base="fp asimd evtstrm aes pmull sha1 sha2 crc32"
dot="$base atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
view a53 0xd03 "$base cpuid"
view a76 0xd0b "$dot"
view i8mm 0xd47 "$dot i8mm bf16"

gcc -O2 -shared -fPIC -o "$dest/count.so" "$here/count.c"
cat >"$dest/python" <<RUN
#!/usr/bin/env bash
here=\$(cd "\$(dirname "\${BASH_SOURCE[0]}")" && pwd)
declare -A models=([a53]=cortex-a53 [a76]=cortex-a76 [i8mm]=max,sme=off,sve=off)
prefix=\$here/view-\$1
model=\${models[\$1]:?no such CPU}
shift
exec qemu-aarch64 -cpu "\$model" \${COUNT:+-plugin "\$here/count.so"} -L "\$prefix" \\
    -E PYTHONPATH="\$prefix/opt/site" -E PYTHONHOME="\$prefix/usr" -E PYTHONDONTWRITEBYTECODE=1 \\
    "\$prefix/usr/bin/python$version" "\$@"
RUN
chmod +x "$dest/python"
for cpu in a53 a76 i8mm; do
    "$dest/python" "$cpu" -c "import onnxruntime; print('$cpu: onnxruntime', onnxruntime.__version__)"
done
touch "$dest/ready"
rm -r "$dest/apt" "$dest/wheels"
