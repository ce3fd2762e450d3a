//! `make initramfs`, and what `make image` needs before and after mkosi.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use initramfs::{
    InitramfsError, Profile, Sources, Stamp, Tree, assemble, compress, decompress, sbom,
};

/// The level at which zstd takes a second for an image; higher ones save a few percent.
const LEVEL: i32 = 9;
/// How many of the largest files are printed.
const LARGEST: usize = 12;

#[derive(Debug, Parser)]
#[command(
    name = "initramfs",
    about = "Makes the tree of the appliance's image",
    version
)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make OUT/adit-PROFILE.initrd, the kernel beside it, the manifest and the bill of materials
    Build {
        #[command(flatten)]
        parts: Parts,
        /// Where to
        #[arg(long)]
        out: PathBuf,
    },
    /// Write the tree to a folder, for mkosi
    Stage {
        #[command(flatten)]
        parts: Parts,
        /// Where to; it must not be there
        #[arg(long)]
        to: PathBuf,
    },
    /// Print the manifest
    Manifest {
        #[command(flatten)]
        parts: Parts,
    },
    /// Print the bill of materials
    Sbom {
        #[command(flatten)]
        parts: Parts,
    },
    /// Print what two initramfs differ in; fails when they do
    Diff {
        /// One
        left: PathBuf,
        /// The other
        right: PathBuf,
        /// Paths that may be on one side only, or differ
        #[arg(long)]
        except: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Parts {
    /// The project's folder
    #[arg(long, default_value = ".")]
    project: PathBuf,
    /// What qemu-tests/guest/make-root prints
    #[arg(long)]
    tools: PathBuf,
    /// Where cargo puts programs
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// release or dev
    #[arg(long, default_value = "release")]
    profile: Profile,
}

impl Parts {
    fn sources(&self) -> Sources {
        Sources {
            image: self.project.join("image"),
            tools: self.tools.clone(),
            programs: self.programs.clone(),
            profile: self.profile,
            stamp: Stamp::of_checkout(&self.project),
        }
    }
}

fn main() -> ExitCode {
    match run(&Flags::parse().command) {
        Ok(status) => status,
        Err(error) => {
            let mut text = format!("initramfs: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<ExitCode, InitramfsError> {
    match command {
        Command::Build { parts, out } => build(parts, out)?,
        Command::Stage { parts, to } => {
            let all = assemble(&parts.sources())?;
            all.tree.write_to(to)?;
            println!("{}", all.kernel.release);
        }
        Command::Manifest { parts } => {
            let all = assemble(&parts.sources())?;
            print!("{}", all.tree.manifest(&all.kernel.release));
        }
        Command::Sbom { parts } => {
            let sources = parts.sources();
            let all = assemble(&sources)?;
            print!("{}", sbom(&sources, &all, &parts.project)?);
        }
        Command::Diff {
            left,
            right,
            except,
        } => {
            let difference = unpacked(left)?.difference(&unpacked(right)?, except);
            print!("{difference}");
            if !difference.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(parts: &Parts, out: &Path) -> Result<(), InitramfsError> {
    let sources = parts.sources();
    let all = assemble(&sources)?;
    fs::create_dir_all(out).map_err(failed("make", out))?;
    let profile = sources.profile.word();
    let small = compress(&all.tree.archive(), LEVEL)?;
    let kernel = fs::read(&all.kernel.image).map_err(failed("read", &all.kernel.image))?;
    println!(
        "Adit {} ({profile}): kernel {} {} KiB, initramfs {} KiB, unpacked:",
        sources.stamp.version,
        all.kernel.release,
        kernel.len() / 1024,
        small.len() / 1024,
    );
    print!("{}", all.tree.sizes(LARGEST));
    let manifest = all.tree.manifest(&all.kernel.release);
    let sbom = sbom(&sources, &all, &parts.project)?;
    for (name, bytes) in [
        ("initrd", &*small),
        ("vmlinuz", &*kernel),
        ("manifest", manifest.as_bytes()),
        ("spdx.json", sbom.as_bytes()),
    ] {
        let path = out.join(format!("adit-{profile}.{name}"));
        fs::write(&path, bytes).map_err(failed("write", &path))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn unpacked(path: &Path) -> Result<Tree, InitramfsError> {
    let bytes = fs::read(path).map_err(failed("read", path))?;
    Tree::from_archive(&decompress(&bytes)?)
}

fn failed(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> InitramfsError + use<> {
    let path = path.to_owned();
    move |source| InitramfsError::File {
        action,
        path,
        source,
    }
}
