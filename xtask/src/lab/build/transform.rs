//! Rewriting Debian's 6.1 into kernels that differ in the type of a lock.
//!
//! In: the text of `mm/vmalloc.c` and `fs/proc/kcore.c`. Out: the same with other locks. Pure.
//! Calls are rewritten by the function that they stand in, since only that tells a reader from a
//! writer.
//!
//! Invariant: every kind of change is counted and the counts are asserted, so that a base source
//! with another call fails instead of becoming half a kernel.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};

/// The files that a variant may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// `mm/vmalloc.c`.
    pub(super) vmalloc: String,
    /// `fs/proc/kcore.c`.
    pub(super) kcore: String,
}

/// A change of the sources.
pub(super) type Edit = fn(&mut Sources) -> Result<()>;

/// Functions of `mm/vmalloc.c` that take `vmap_area_lock` and change nothing under it.
const READERS: [&str; 5] = [
    "find_vmap_area",
    "vread",
    "vmalloc_dump_obj",
    "s_start",
    "s_stop",
];

/// What stands in the base, what it becomes in readers and in writers, and how often either is
/// there in Debian's 6.1 from 6.1.170 on.
struct Rule {
    from: &'static str,
    reader: (&'static str, usize),
    writer: (&'static str, usize),
}

const fn rule(
    from: &'static str,
    reader: (&'static str, usize),
    writer: (&'static str, usize),
) -> Rule {
    Rule {
        from,
        reader,
        writer,
    }
}

/// `vmap_area_lock` becomes an rwsem, `vmap_block.lock` a mutex: patch 2/4 of "convert
/// read_kcore(), vread() to use iterators", version 2 of 19 March 2023, on the sites of 6.1.
const RWSEM: [Rule; 7] = [
    rule(
        "DEFINE_SPINLOCK(vmap_area_lock)",
        ("", 0),
        ("DECLARE_RWSEM(vmap_area_lock)", 1),
    ),
    rule(
        "spin_lock(&vmap_area_lock)",
        ("down_read(&vmap_area_lock)", 3),
        ("down_write(&vmap_area_lock)", 6),
    ),
    rule(
        "spin_trylock(&vmap_area_lock)",
        ("down_read_trylock(&vmap_area_lock)", 1),
        ("down_write_trylock(&vmap_area_lock)", 0),
    ),
    rule(
        "spin_unlock(&vmap_area_lock)",
        ("up_read(&vmap_area_lock)", 6),
        ("up_write(&vmap_area_lock)", 7),
    ),
    rule(
        "spin_lock_init(&vb->lock)",
        ("", 0),
        ("mutex_init(&vb->lock)", 1),
    ),
    rule(
        "spin_lock(&vb->lock)",
        ("", 0),
        ("mutex_lock(&vb->lock)", 4),
    ),
    rule(
        "spin_unlock(&vb->lock)",
        ("", 0),
        ("mutex_unlock(&vb->lock)", 7),
    ),
];

/// The kernel of the patch: an rwsem, and a mutex in each block.
pub(super) fn rwsem(sources: &mut Sources) -> Result<()> {
    let mut text = apply(&RWSEM, &sources.vmalloc)?;
    replace_once(
        &mut text,
        "struct vmap_block {\n\tspinlock_t lock;",
        "struct vmap_block {\n\tstruct mutex lock;",
    )?;
    replace_once(
        &mut text,
        "#include <linux/spinlock.h>\n",
        "#include <linux/spinlock.h>\n#include <linux/rwsem.h>\n#include <linux/mutex.h>\n",
    )?;
    insert_in(&mut text, "vread", "kasan_reset_tag", "\tmight_sleep();\n")?;
    sources.vmalloc = text;
    Ok(())
}

/// The idea of patch 4/4 on top of [`rwsem`]: a read of vmalloc memory copies to its destination,
/// which may fault, while it holds the rwsem.
pub(super) fn iterator(sources: &mut Sources) -> Result<()> {
    let vmalloc = &mut sources.vmalloc;
    replace_function(vmalloc, "aligned_vread", COPY_AREA)?;
    replace_function(vmalloc, "vread", VREAD_ITER)?;
    replace_once(
        vmalloc,
        "#include <linux/spinlock.h>\n",
        "#include <linux/spinlock.h>\n#include <linux/uio.h>\n",
    )?;
    let kcore = &mut sources.kcore;
    let call = kcore
        .find("\t\t\tvread(buf, (char *)start, tsz);\n")
        .context("fs/proc/kcore.c does not call vread() as expected")?;
    let copy = "if (copy_to_iter(buf, tsz, iter) != tsz) {";
    let end = kcore[call..]
        .find(copy)
        .filter(|&bytes| bytes < 200)
        .context("fs/proc/kcore.c does not copy what vread() gave it as expected")?;
    kcore.replace_range(
        call..call + end + copy.len(),
        "\t\t\tif (vread_iter(iter, (char *)start, tsz) != tsz) {",
    );
    // Not in the header: all of the kernel would be compiled anew for it.
    replace_once(
        kcore,
        "#include <linux/vmalloc.h>\n",
        "#include <linux/vmalloc.h>\n\
         long vread_iter(struct iov_iter *iter, const char *addr, size_t count);\n",
    )
}

/// Some thousand instructions more under `vmap_area_lock` whenever an area is freed: a difference
/// that a comparison has to find, in that op and no other.
pub(super) fn slow_free(sources: &mut Sources) -> Result<()> {
    insert_in(
        &mut sources.vmalloc,
        "free_vmap_area_noflush",
        "spin_lock(&vmap_area_lock);",
        "\tfor (int i = 0; i < 2000; i++)\n\t\tbarrier();\n",
    )
}

const COPY_AREA: &str = "\
static size_t copy_area(struct iov_iter *iter, const char *addr, size_t count)
{
	size_t done = 0;

	while (done < count) {
		size_t offset = offset_in_page(addr + done);
		size_t length = min_t(size_t, count - done, PAGE_SIZE - offset);
		struct page *page = vmalloc_to_page(addr + done);
		size_t copied;

		if (page) {
			char *from = kmap_local_page(page);

			copied = copy_to_iter(from + offset, length, iter);
			kunmap_local(from);
		} else {
			copied = iov_iter_zero(length, iter);
		}
		done += copied;
		if (copied != length)
			break;
	}
	return done;
}
";

const VREAD_ITER: &str = "\
long vread_iter(struct iov_iter *iter, const char *addr, size_t count)
{
	struct vmap_area *va;
	size_t left, step, copied;

	addr = kasan_reset_tag(addr);
	might_sleep();
	if ((unsigned long)addr + count < count)
		count = -(unsigned long)addr;
	left = count;

	down_read(&vmap_area_lock);
	va = find_vmap_area_exceed_addr((unsigned long)addr);
	if (!va)
		goto nothing_more;
	list_for_each_entry_from(va, &vmap_area_list, list) {
		struct vm_struct *vm = va->vm;
		const char *start, *end;

		if (!left)
			break;
		if (!vm)
			continue;
		start = vm->addr;
		end = start + get_vm_area_size(vm);
		if (addr >= end)
			continue;
		if (addr < start) {
			step = min_t(size_t, left, start - addr);
			copied = iov_iter_zero(step, iter);
			addr += copied;
			left -= copied;
			if (copied != step)
				goto cut;
			if (!left)
				break;
		}
		step = min_t(size_t, left, end - addr);
		if (vm->flags & VM_IOREMAP)
			copied = iov_iter_zero(step, iter);
		else
			copied = copy_area(iter, addr, step);
		addr += copied;
		left -= copied;
		if (copied != step)
			goto cut;
	}
nothing_more:
	up_read(&vmap_area_lock);
	return count - left + iov_iter_zero(left, iter);
cut:
	up_read(&vmap_area_lock);
	return count - left;
}
";

/// Applies the rules line by line, and checks how often each was used.
fn apply(rules: &[Rule], text: &str) -> Result<String> {
    let mut used = vec![(0, 0); rules.len()];
    let mut rewritten = String::with_capacity(text.len());
    for (line, function) in by_function(text) {
        let reads = function.is_some_and(|function| READERS.contains(&function));
        let mut line = line.to_owned();
        for (rule, (readers, writers)) in rules.iter().zip(&mut used) {
            if !line.contains(rule.from) {
                continue;
            }
            let (to, count) = if reads {
                (rule.reader.0, readers)
            } else {
                (rule.writer.0, writers)
            };
            line = line.replace(rule.from, to);
            *count += 1;
        }
        writeln!(rewritten, "{line}")?;
    }
    for (rule, (readers, writers)) in rules.iter().zip(used) {
        let (wanted_readers, wanted_writers) = (rule.reader.1, rule.writer.1);
        ensure!(
            (readers, writers) == (wanted_readers, wanted_writers),
            "the base source has changed: `{}` stands in {readers} readers and {writers} others, \
             not in {wanted_readers} and {wanted_writers}",
            rule.from
        );
    }
    Ok(rewritten)
}

/// Each line with the function that it stands in. The kernel's style puts the signature and the
/// braces of a function, and nothing else of it, at the beginning of a line.
fn by_function(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let mut signature = None;
    let mut inside = None;
    text.lines().map(move |line| {
        match line {
            "{" => inside = signature,
            "}" => inside = None,
            _ => {
                if let Some(name) = named(line) {
                    signature = Some(name);
                }
            }
        }
        (line, inside)
    })
}

/// The function that a line at its beginning names: the word before the first parenthesis.
fn named(line: &str) -> Option<&str> {
    if !line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let before = line.split_once('(')?.0;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    before.rsplit(|c: char| !word(c)).next()
}

fn replace_once(text: &mut String, from: &str, to: &str) -> Result<()> {
    let times = text.matches(from).count();
    ensure!(
        times == 1,
        "the base source has changed: it has {times} times, not once, `{}`",
        from.trim()
    );
    *text = text.replacen(from, to, 1);
    Ok(())
}

/// Inserts lines behind the only line of `function` that contains `mark`.
fn insert_in(text: &mut String, function: &str, mark: &str, lines: &str) -> Result<()> {
    let mut found = 0;
    let mut rewritten = String::with_capacity(text.len() + lines.len());
    for (line, inside) in by_function(text) {
        writeln!(rewritten, "{line}")?;
        if inside == Some(function) && line.contains(mark) {
            found += 1;
            rewritten.push_str(lines);
        }
    }
    ensure!(
        found == 1,
        "the base source has changed: {function} has {found} times, not once, `{mark}`"
    );
    *text = rewritten;
    Ok(())
}

/// Replaces a function, from its signature to its closing brace.
fn replace_function(text: &mut String, function: &str, by: &str) -> Result<()> {
    let starts: Vec<_> = text
        .match_indices('\n')
        .map(|(newline, _)| newline + 1)
        .filter(|&start| {
            let rest = &text[start..];
            let line = rest.lines().next().unwrap_or_default();
            named(line) == Some(function) && !line.ends_with(';')
        })
        .collect();
    ensure!(
        starts.len() == 1,
        "the base source has changed: {function} is defined {} times",
        starts.len()
    );
    let start = starts[0];
    let body = text[start..]
        .find("\n}\n")
        .with_context(|| format!("{function} has no end"))?;
    text.replace_range(start..start + body + "\n}\n".len(), by);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
static DEFINE_SPINLOCK(vmap_area_lock);

static struct vmap_area *find_vmap_area(unsigned long addr)
{
	spin_lock(&vmap_area_lock);
	spin_unlock(&vmap_area_lock);
}

static void *s_start(struct seq_file *m, loff_t *pos)
	__acquires(&vmap_area_lock)
{
	spin_lock(&vmap_area_lock);
}

static void free_vmap_area(struct vmap_area *va)
{
	spin_lock(&vmap_area_lock);
	spin_unlock(&vmap_area_lock);
}
";

    fn rules(readers: usize, writers: usize) -> [Rule; 1] {
        [rule(
            "spin_lock(&vmap_area_lock)",
            ("down_read(&vmap_area_lock)", readers),
            ("down_write(&vmap_area_lock)", writers),
        )]
    }

    #[test]
    fn a_call_is_rewritten_by_the_function_it_stands_in() {
        let text = apply(&rules(2, 1), TEXT).unwrap();
        let calls: Vec<_> = text.lines().filter(|line| line.contains("down_")).collect();
        assert_eq!(
            calls,
            [
                "\tdown_read(&vmap_area_lock);",
                "\tdown_read(&vmap_area_lock);",
                "\tdown_write(&vmap_area_lock);"
            ]
        );
    }

    #[test]
    fn a_base_with_another_call_is_refused() {
        for (readers, writers) in [(1, 1), (2, 2), (3, 1)] {
            let error = apply(&rules(readers, writers), TEXT).unwrap_err();
            assert!(error.to_string().contains("has changed"), "{error}");
        }
    }

    #[test]
    fn a_function_is_replaced_whole() {
        let mut text = TEXT.to_owned();
        replace_function(&mut text, "free_vmap_area", "void gone(void)\n{\n}\n").unwrap();
        assert!(text.ends_with("\n\nvoid gone(void)\n{\n}\n"), "{text}");
        assert_eq!(text.matches("spin_lock(").count(), 2);
        replace_function(&mut text, "free_vmap_area", "").unwrap_err();
    }

    #[test]
    fn lines_are_inserted_in_one_function_only() {
        let mut text = TEXT.to_owned();
        insert_in(&mut text, "free_vmap_area", "spin_lock(", "\tdelay();\n").unwrap();
        assert_eq!(text.matches("delay").count(), 1);
        assert!(text.contains(
            "free_vmap_area(struct vmap_area *va)\n{\n\tspin_lock(&vmap_area_lock);\n\tdelay();"
        ));
    }
}
