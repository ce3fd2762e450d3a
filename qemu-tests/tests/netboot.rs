//! What stands around the image: the example of a DHCP and TFTP server, and the developer's machine.

#![expect(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use initramfs::{Profile, Sources, Stamp, assemble, compress};
use program_tests::{KilledChild, free_port, patience, program, until, until_within};
use qemu_tests::{skip_without_qemu, tools_root};
use tempfile::TempDir;

const NQN: &str = "nqn.2026-11.io.adit:vm";

/// Starts dnsmasq of the tools root with the example, on one end of a virtual cable in a network of its
/// own; asks from the other end as each kind of firmware.
const SCRIPT: &str = r#"
ip() { chroot "$root" ip "$@"; }
mount --bind "$tftp" "$root/srv"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/var/lib/misc"
mount --rbind /dev "$root/dev"
ip link set lo up
ip link add server type veth peer name node
ip address add 192.0.2.1/24 dev server
ip link set server up
ip link set node up
chroot "$root" dnsmasq --no-daemon --user=root --conf-file=/srv/dnsmasq.conf \
    --dhcp-leasefile=/run/leases --pid-file= >"$tftp/log" 2>&1 &
server=$!
trap 'kill $server; wait $server || true' EXIT
ask() {
    name=$1; shift
    echo "== $name"
    "$busybox" udhcpc -i node -n -q -f -t 10 -T 1 -s "$tftp/show" "$@" 2>&1
}
ask bios -x 0x5d:0000 -V PXEClient:Arch:00000
ask efi -x 0x5d:0007 -V PXEClient:Arch:00007
ask ipxe -x 0x5d:0000 -x 0x4d:69505845 -V PXEClient:Arch:00000
ask http -x 0x5d:0010 -V HTTPClient:Arch:00016
"$busybox" tftp -g -r autoexec.ipxe -l "$tftp/fetched" 192.0.2.1
"#;

/// Goal: the example of a DHCP and TFTP server in docs/operations/netboot.md works as it stands. Method:
/// dnsmasq runs with it in a network namespace; a DHCP client says that it is a BIOS, UEFI, iPXE and
/// UEFI over HTTP, and a file comes over TFTP.
#[test]
fn dnsmasq_answers_each_kind_of_firmware() {
    if skip_without_qemu() {
        return;
    }
    let tools = tools_root().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let example = include_str!("../../image/netboot/dnsmasq.conf");
    let example = example
        .replace("@INTERFACE@", "server")
        .replace("@TFTP@", "/srv")
        .replace("@URL@", "http://192.0.2.1/adit");
    write("dnsmasq.conf", &example);
    let script = include_str!("../../image/netboot/autoexec.ipxe");
    write("autoexec.ipxe", script);
    let show = "#!/bin/sh\n[ \"$1\" != bound ] || echo \"$ip file=$boot_file$bootfile\"\n";
    write("show", show);
    let path = folder.path().join("show");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
    let output = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-euc",
            SCRIPT,
        ])
        .env("root", tools.join("root"))
        .env("busybox", tools.join("busybox"))
        .env("tftp", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = text(&output);
    if said.contains("Operation not permitted") {
        println!("skipped: a network namespace needs root: {said}");
        return;
    }
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert!(output.status.success(), "{said}\n{log}");
    let file = |who: &str| {
        let of = said.split(&format!("== {who}\n")).nth(1).unwrap();
        let of = of.split("== ").next().unwrap();
        let line = of.lines().find_map(|line| line.split_once(" file="));
        let (address, file) = line.unwrap_or_else(|| panic!("{who}: {said}\n{log}"));
        assert!(address.starts_with("192.0.2.1"), "{address}");
        file.to_owned()
    };
    assert_eq!(file("bios"), "undionly.kpxe");
    assert_eq!(file("efi"), "ipxe.efi");
    assert_eq!(file("ipxe"), "autoexec.ipxe");
    assert_eq!(file("http"), "http://192.0.2.1/adit/adit-release.efi");
    let fetched = std::fs::read_to_string(folder.path().join("fetched")).unwrap();
    assert_eq!(fetched, script);
}

fn text(output: &Output) -> String {
    let both = [&*output.stdout, &*output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// What `make vm` and `make vm-host` need, and a folder for both.
struct Machines {
    folder: TempDir,
    agent: u16,
    nvme: u16,
}

impl Machines {
    fn make() -> Self {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = tempfile::tempdir().unwrap();
        let all = assemble(&Sources {
            image: project.join("image"),
            tools: tools_root().unwrap(),
            programs: program("aditd").parent().unwrap().to_owned(),
            profile: Profile::Dev,
            stamp: Stamp::of_checkout(&project),
        })
        .unwrap();
        let archive = compress(&all.tree.archive(), 1).unwrap();
        std::fs::write(folder.path().join("adit-dev.initrd"), archive).unwrap();
        std::fs::copy(&all.kernel.image, folder.path().join("adit-dev.vmlinuz")).unwrap();
        Self {
            folder,
            agent: free_port().unwrap(),
            nvme: free_port().unwrap(),
        }
    }

    fn vm(&self) -> PathBuf {
        self.folder.path().join("vm")
    }

    /// Runs the script for one of the two, with what it is told on its terminal.
    fn start(&self, what: &str, input: impl Into<Stdio>) -> KilledChild {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/vm");
        let log = File::create(self.log(what)).unwrap();
        KilledChild::spawn(script.to_str().unwrap(), |command| {
            command
                .arg(what)
                .args([self.folder.path(), program("aditd").parent().unwrap()])
                .env("VM_DIR", self.vm())
                .env("VM_AGENT_PORT", self.agent.to_string())
                .env("VM_NVME_PORT", self.nvme.to_string())
                .stdin(input)
                .stdout(log.try_clone().unwrap())
                .stderr(log);
        })
        .unwrap()
    }

    fn log(&self, what: &str) -> PathBuf {
        self.folder.path().join(what).with_extension("log")
    }

    /// What both have said, and what their consoles show.
    fn said(&self) -> String {
        let logs = [
            self.log("node"),
            self.vm().join("console.log"),
            self.log("host"),
        ];
        let read = |path| std::fs::read(path).unwrap_or_default();
        String::from_utf8_lossy(&logs.map(read).concat()).into_owned()
    }

    fn wait_for(&self, machine: &mut KilledChild, words: &str) {
        until_within(patience(400), words, || {
            assert!(machine.ended().is_none(), "{}", self.said());
            self.said().contains(words).then_some(())
        });
    }

    fn ctl(&self, line: &str) -> String {
        let mut command = Command::new(program("aditctl"));
        let command = command.env("ADIT_CONTEXTS", self.vm().join("contexts.toml"));
        let command = command.env_remove("ADIT_SERVER").args(line.split(' '));
        let output = command.output().unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{line}: {said}\n{}", self.said());
        said
    }
}

/// Goal: one command brings a machine that `aditctl` manages, another a host beside it that reads a volume
/// of it. Method: the script of `make vm` and `make vm-host` runs without a terminal; the volume lies on a
/// drive that the node drives itself.
#[test]
fn the_machines_of_a_developer_come_with_a_command_each() {
    if skip_without_qemu() {
        return;
    }
    let machines = Machines::make();
    let mut node = machines.start("node", Stdio::null());
    machines.wait_for(&mut node, "vm: the node is managed");
    machines.ctl("bdev create nvme d1 --serial drive-1");
    until("the drive", || {
        let shown = machines.ctl("bdev show d1");
        shown.contains("d1n1").then_some(())
    });
    machines.ctl("pool create tank d1n1");
    machines.ctl("volume create tank/v --size 64MiB");
    assert!(machines.ctl("volume list tank").contains("tank/v"));
    machines.ctl(&format!(
        "volume share tank/v --listen tcp://10.0.2.15:4420 --nqn {NQN}"
    ));

    let (terminal, mut keys) = io::pipe().unwrap();
    let mut host = machines.start("host", terminal);
    machines.wait_for(&mut host, "host# ");
    let port = machines.nvme;
    let script = format!(
        "nvme connect -t tcp -a 10.0.2.2 -s {port} -n {NQN}; \
         until [ -b /dev/nvme0n1 ]; do sleep 0.2; done; \
         dd if=/dev/nvme0n1 of=/dev/null iflag=direct bs=1M && echo all of it, $((32 + 32)) MiB\n"
    );
    keys.write_all(script.as_bytes()).unwrap();
    machines.wait_for(&mut host, "all of it, 64 MiB");
    keys.write_all(b"nvme disconnect-all; exit\n").unwrap();
    until_within(patience(120), "the host to power off", || host.ended());
    node.kill_9();
}
