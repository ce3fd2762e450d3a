//! What stands around the image: the example of a DHCP and TFTP server, and the developer's machine.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use initramfs::{Profile, Sources, Stamp, assemble, compress};
use program_tests::{KilledChild, free_port, program, until};
use qemu_tests::{skip_without_qemu, tools_root};

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

/// Goal: one command brings a machine that `aditctl` manages. Method: the script of `make vm` runs
/// without a terminal, until it says so; then a pool on a drive that the node drives itself.
#[test]
fn the_machine_of_a_developer_is_managed_in_one_command() {
    if skip_without_qemu() {
        return;
    }
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder = tempfile::tempdir().unwrap();
    let programs = program("aditd").parent().unwrap().to_owned();
    let all = assemble(&Sources {
        image: project.join("image"),
        tools: tools_root().unwrap(),
        programs: programs.clone(),
        profile: Profile::Dev,
        stamp: Stamp::of_checkout(&project),
    })
    .unwrap();
    let archive = compress(&all.tree.archive(), 1).unwrap();
    std::fs::write(folder.path().join("adit-dev.initrd"), archive).unwrap();
    std::fs::copy(&all.kernel.image, folder.path().join("adit-dev.vmlinuz")).unwrap();
    let (agent, nvme) = (free_port().unwrap(), free_port().unwrap());
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let script = project.join("image/vm").display().to_string();
    let vm = folder.path().join("vm");
    let mut machine = KilledChild::spawn(&script, |command| {
        command
            .arg("node")
            .args([folder.path(), &programs])
            .env("VM_DIR", &vm)
            .env("VM_AGENT_PORT", agent.to_string())
            .env("VM_NVME_PORT", nvme.to_string())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
    })
    .unwrap();
    let console = || {
        let read = |path| std::fs::read(path).unwrap_or_default();
        let bytes = [read(log.clone()), read(vm.join("console.log"))].concat();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    until("the machine to be managed", || {
        assert!(machine.ended().is_none(), "{}", console());
        console().contains("vm: the node is managed").then_some(())
    });
    let ctl = |words: &[&str]| {
        let mut command = Command::new(program("aditctl"));
        let command = command.env("ADIT_CONTEXTS", vm.join("contexts.toml"));
        let output = command.env_remove("ADIT_SERVER").args(words).output();
        let output = output.unwrap();
        let said = text(&output);
        assert!(output.status.success(), "{words:?}: {said}\n{}", console());
        said
    };
    ctl(&["bdev", "create", "nvme", "d1", "--serial", "drive-1"]);
    until("the drive", || {
        ctl(&["bdev", "show", "d1"]).contains("d1n1").then_some(())
    });
    ctl(&["pool", "create", "tank", "d1n1"]);
    ctl(&["volume", "create", "tank/v", "--size", "64MiB"]);
    assert!(ctl(&["volume", "list", "tank"]).contains("tank/v"));
    machine.kill_9();
}
