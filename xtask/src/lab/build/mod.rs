//! `cargo xtask lab build`: kernels of one source that differ in one thing.
//!
//! In: the table of [`variants`]. Out: for each a folder in the cache with `vmlinuz`, `config` and
//! the modules of the loads, named after everything that went into it. [`source`] fetches the
//! base, [`transform`] changes it.
//!
//! Invariant: a variant's folder appears by one rename when all of it is there. The folders that
//! compilers work in are not for anyone else and may be in any state.

mod source;
mod transform;
pub(crate) mod variants;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};

use self::{
    source::Tree,
    variants::{VARIANTS, Variant},
};
use super::initramfs::Extra;
use crate::{
    command,
    places::Places,
    setup,
    steps::{Step, Steps},
};

/// What every kernel has beside `make tinyconfig`.
const CONFIG: &str = include_str!("../../../lab/kernel.config");

/// The files of modules that are loads of their own.
const LOAD: [(&str, &str); 4] = [
    ("Kbuild", include_str!("../../../lab/load/Kbuild")),
    ("vmap_ram.c", include_str!("../../../lab/load/vmap_ram.c")),
    (
        "known_hold.c",
        include_str!("../../../lab/load/known_hold.c"),
    ),
    ("contexts.c", include_str!("../../../lab/load/contexts.c")),
];

/// The modules that are kept, by where they are made.
const MODULES: [&str; 4] = [
    "lib/test_vmalloc.ko",
    "load/vmap_ram.ko",
    "load/known_hold.ko",
    "load/contexts.ko",
];

/// What a kernel is made of beside the source, so that a change of any makes others.
const INGREDIENTS: [&str; 7] = [
    CONFIG,
    LOAD[0].1,
    LOAD[1].1,
    LOAD[2].1,
    LOAD[3].1,
    include_str!("transform.rs"),
    include_str!("variants.rs"),
];

/// Where compilers work, below the cache.
const OBJECTS: &str = "objects";

/// Room for the source and two sets of objects.
const NEEDED_BYTES: u64 = 4 << 30;

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    pub(crate) variant: &'static Variant,
    folder: PathBuf,
}

impl Built {
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The folder with the modules of this kernel.
    fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// The modules of this kernel for an initramfs: a folder below `modules`, and the files in it.
    pub(crate) fn files(&self) -> Result<(String, Vec<Extra>)> {
        let folder = format!("modules/{}", self.variant.name);
        let mut files = Vec::new();
        for entry in fs::read_dir(self.modules())? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_str().context("a module's name is not UTF-8")?;
            files.push((format!("{folder}/{name}"), fs::read(entry.path())?));
        }
        files.sort();
        Ok((folder, files))
    }
}

/// Finds or builds these variants.
pub(crate) fn provide(
    places: &Places,
    wanted: &[&'static Variant],
    steps: &mut Steps,
) -> Result<Vec<Built>> {
    let tree = steps.run("kernel source", |step| {
        setup::kernel_build_programs(step)?;
        let tree = Tree::provide(places, step)?;
        let version = tree.version.clone();
        Ok((tree, version))
    })?;
    wanted
        .iter()
        .map(|variant| {
            steps.run(&format!("kernel {}", variant.name), |step| {
                one(places, &tree, variant, step)
            })
        })
        .collect()
}

/// How many steps [`provide`] takes.
pub(crate) const fn steps(variants: usize) -> usize {
    1 + variants
}

fn one(
    places: &Places,
    tree: &Tree,
    variant: &'static Variant,
    step: &Step,
) -> Result<(Built, String)> {
    let name = Path::new("lab-kernels")
        .join(format!("{}-{:08x}", tree.version, digest()))
        .join(variant.name);
    let folder = places.cache.join(&name);
    let built = Built { variant, folder };
    if built.folder.is_dir() {
        return Ok((built, "already there".to_owned()));
    }
    for old in outdated(places, tree)? {
        step.note(&format!("removing {}, of an older source", old.display()));
        fs::remove_dir_all(&old)
            .with_context(|| format!("failed to remove {0}; `rm -rf {0}`", old.display()))?;
    }
    enough_room(places)?;
    let mut sources = tree.pristine()?;
    for edit in variant.edits {
        edit(&mut sources).with_context(|| {
            format!(
                "{} {} cannot become the variant {}",
                source::PACKAGE,
                tree.version,
                variant.name
            )
        })?;
    }
    tree.put(&sources)?;
    let objects = Objects::of(places, tree, variant)?;
    objects.configure(variant, step)?;
    objects.compile(variant, step)?;
    objects.keep(places, &name)?;
    Ok((built, variant.about.to_owned()))
}

fn digest() -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    INGREDIENTS
        .iter()
        .for_each(|text| hasher.update(text.as_bytes()));
    hasher.finalize()
}

fn enough_room(places: &Places) -> Result<()> {
    let cache = &places.cache;
    let file_system = nix::sys::statvfs::statvfs(cache)?;
    let free = file_system.blocks_available() * file_system.fragment_size();
    if free < NEEDED_BYTES {
        bail!(
            "{} MB are free below {cache}, and building kernels takes {} MB; `df {cache}`",
            free >> 20,
            NEEDED_BYTES >> 20,
            cache = cache.display()
        );
    }
    Ok(())
}

/// What earlier versions of the source left behind and no build comes back to: their trees and the
/// folders that compilers worked in, a gigabyte for each configuration. The kernels stay.
fn outdated(places: &Places, tree: &Tree) -> Result<Vec<PathBuf>> {
    let in_use = |name: &str| {
        name.starts_with(&format!("{}-", tree.version))
            || tree.folder.file_name().is_some_and(|own| own == name)
    };
    let mut found = Vec::new();
    for folder in [OBJECTS, source::FOLDER] {
        let Ok(entries) = fs::read_dir(places.cache.join(folder)) else {
            continue;
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_str().is_some_and(in_use) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Where one configuration is compiled. Variants of the same configuration share it: what they do
/// not differ in is compiled once.
struct Objects<'a> {
    tree: &'a Tree,
    folder: PathBuf,
}

impl<'a> Objects<'a> {
    fn of(places: &Places, tree: &'a Tree, variant: &Variant) -> Result<Self> {
        let config = crc32fast::hash(format!("{CONFIG}{}", variant.config).as_bytes());
        let folder = places
            .cache
            .join(OBJECTS)
            .join(format!("{}-{config:08x}", tree.version));
        let load = folder.join("load");
        fs::create_dir_all(&load)?;
        for (name, text) in LOAD {
            fs::write(load.join(name), text)?;
        }
        Ok(Self { tree, folder })
    }

    fn make(&self) -> Command {
        let mut make = Command::new("make");
        let out = format!("O={}", self.folder.display());
        make.arg("-C").arg(&self.tree.folder).arg(out);
        let cores = thread::available_parallelism().map_or(1, usize::from);
        make.arg(format!("-j{cores}"));
        // The same sources give the same kernel, whoever builds it and when.
        for (variable, value) in [
            ("KBUILD_BUILD_TIMESTAMP", "2023-03-19"),
            ("KBUILD_BUILD_USER", "kcore-trace"),
            ("KBUILD_BUILD_HOST", "lab"),
        ] {
            make.env(variable, value);
        }
        make
    }

    fn configure(&self, variant: &Variant, step: &Step) -> Result<()> {
        let finished = self.folder.join("configured");
        if finished.is_file() {
            return Ok(());
        }
        step.doing("configuring");
        step.watch(self.make().arg("tinyconfig"))?;
        let config = self.folder.join(".config");
        let wanted = format!("{CONFIG}{}", variant.config);
        let tiny = fs::read_to_string(&config)?;
        fs::write(&config, format!("{tiny}{wanted}"))?;
        step.watch(self.make().arg("olddefconfig"))?;
        let chosen = fs::read_to_string(&config)?;
        let missing = not_chosen(&wanted, &chosen);
        if !missing.is_empty() {
            bail!("the source does not let us set {}", missing.join(", "));
        }
        Ok(fs::write(finished, "")?)
    }

    fn compile(&self, variant: &Variant, step: &Step) -> Result<()> {
        step.doing("compiling");
        let mut make = self.make();
        make.env("KBUILD_BUILD_VERSION", variant.name);
        let built = step.watch(make.args(["bzImage", "modules"]));
        built.with_context(|| format!("the variant {} does not compile", variant.name))?;
        let load = format!("M={}", self.folder.join("load").display());
        step.watch(self.make().args([&load, "modules"]))
            .context("the lab's own modules do not compile")
    }

    fn keep(&self, places: &Places, name: &Path) -> Result<()> {
        let scratch = places.scratch()?;
        let kernel = scratch.path().join("kernel");
        let modules = kernel.join("modules");
        fs::create_dir_all(&modules)?;
        let copy = |from: &str, to: PathBuf| {
            let copied = fs::copy(self.folder.join(from), to);
            copied.with_context(|| format!("the build made no {from}"))
        };
        copy("arch/x86/boot/bzImage", kernel.join("vmlinuz"))?;
        copy(".config", kernel.join("config"))?;
        for module in MODULES {
            let file = Path::new(module)
                .file_name()
                .context("a module has a name")?;
            let stripped = modules.join(file);
            copy(module, stripped.clone())?;
            let mut strip = Command::new("strip");
            command::run(strip.arg("--strip-debug").arg(stripped))?;
        }
        places.keep(&kernel, name)?;
        Ok(())
    }
}

/// The settings that are wanted, or are to be left out, and were not taken.
fn not_chosen<'a>(wanted: &'a str, chosen: &str) -> Vec<&'a str> {
    let is_taken = |line: &str| match left_out(line) {
        // It need not be named at all, if what it belongs to was left out.
        Some(name) => !chosen.lines().any(|chosen| {
            chosen
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        }),
        None => !line.starts_with("CONFIG_") || chosen.lines().any(|chosen| chosen == line),
    };
    wanted.lines().filter(|line| !is_taken(line)).collect()
}

/// The name of a setting that is not to be set.
fn left_out(line: &str) -> Option<&str> {
    line.strip_prefix("# ")?.strip_suffix(" is not set")
}

/// Copies kernels to where a user wants them, to boot them elsewhere.
pub(crate) fn install(built: &[Built], folder: &Path) -> Result<()> {
    for kernel in built {
        let into = folder.join(kernel.variant.name);
        fs::create_dir_all(into.join("modules"))
            .with_context(|| format!("failed to create {0}; `ls -ld {0}`", into.display()))?;
        fs::copy(kernel.image(), into.join("vmlinuz"))?;
        fs::copy(kernel.folder.join("config"), into.join("config"))?;
        for module in fs::read_dir(kernel.modules())? {
            let module = module?;
            fs::copy(module.path(), into.join("modules").join(module.file_name()))?;
        }
    }
    Ok(())
}

/// Every variant of the table.
pub(crate) fn all() -> Vec<&'static Variant> {
    VARIANTS.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_was_not_taken_is_named() {
        let wanted = "# why\nCONFIG_A=y\nCONFIG_B=m\n";
        assert_eq!(
            not_chosen(wanted, "CONFIG_A=y\n# CONFIG_B is not set\n"),
            ["CONFIG_B=m"]
        );
        assert!(not_chosen(wanted, "CONFIG_B=m\nCONFIG_A=y\n").is_empty());
    }

    #[test]
    fn a_setting_that_came_although_it_was_refused_is_named() {
        let wanted = "# CONFIG_VT is not set\n";
        assert_eq!(
            not_chosen(wanted, "CONFIG_VT=y\n"),
            ["# CONFIG_VT is not set"]
        );
        for chosen in ["", wanted, "CONFIG_VT_CONSOLE=y\n"] {
            assert!(not_chosen(wanted, chosen).is_empty(), "{chosen}");
        }
    }

    #[test]
    fn only_what_older_sources_left_is_outdated() {
        let cache = tempfile::tempdir().unwrap();
        let places = Places {
            root: PathBuf::new(),
            target: PathBuf::new(),
            cache: cache.path().to_owned(),
        };
        let folders = [
            "objects/6.1.19-1-aaaaaaaa",
            "objects/6.1.19-2-aaaaaaaa",
            "objects/6.1.19-2-bbbbbbbb",
            "sources/linux-source-6.1_6.1.19-1",
            "sources/linux-source-6.1_6.1.19-2",
            "lab-kernels/6.1.19-1-cccccccc",
        ];
        for folder in folders {
            fs::create_dir_all(cache.path().join(folder)).unwrap();
        }
        let tree = Tree {
            version: "6.1.19-2".into(),
            folder: cache.path().join(folders[4]),
        };
        let mut found = outdated(&places, &tree).unwrap();
        found.sort();
        assert_eq!(
            found,
            [folders[0], folders[3]].map(|f| cache.path().join(f))
        );
    }

    #[test]
    fn a_kernel_that_is_not_whole_has_no_folder() {
        let cache = tempfile::tempdir().unwrap();
        let places = Places {
            root: PathBuf::new(),
            target: PathBuf::new(),
            cache: cache.path().to_owned(),
        };
        let tree = Tree {
            version: "6.1.19-2".into(),
            folder: PathBuf::new(),
        };
        let objects = Objects::of(&places, &tree, &VARIANTS[0]).unwrap();
        let name = Path::new("lab-kernels/6.1.19-2/spinlock");
        // The compiler was killed: the kernel is there, its modules are not.
        let image = objects.folder.join("arch/x86/boot");
        fs::create_dir_all(&image).unwrap();
        fs::write(image.join("bzImage"), "kernel").unwrap();
        fs::write(objects.folder.join(".config"), "").unwrap();
        let error = objects.keep(&places, name).unwrap_err();
        assert!(error.to_string().contains(MODULES[0]), "{error}");
        assert!(!cache.path().join(name).exists());
    }

    #[test]
    fn names_of_variants_are_unique() {
        for variant in &VARIANTS {
            assert!(std::ptr::eq(
                variants::named(variant.name).unwrap(),
                variant
            ));
        }
    }
}
