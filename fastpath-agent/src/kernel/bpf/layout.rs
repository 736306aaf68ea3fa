//! Where members of the kernel's structures lie, from the kernel's own description of its types (BTF). Reads the two files
//! that it needs as bytes; keeps nothing.

use std::{fs, io, path::Path};

use fastpath_common::Probe;

/// Kinds of types, and the size of what follows their header (include/uapi/linux/btf.h).
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNCTION: u32 = 12;
/// A member is name, type and offset.
const MEMBER: usize = 12;
/// Structs within structs are no deeper than this in what is asked for.
const DEPTH: u32 = 4;

/// Looks up what [`Probe`] has of this kernel; the namespace is left to the caller. `None` if this kernel's structures aren't the
/// ones that the program knows.
pub(super) fn of_this_kernel() -> io::Result<Option<Probe>> {
    let directory = Path::new("/sys/kernel/btf");
    let base = fs::read(directory.join("vmlinux"))?;
    // Built in, its types are among the kernel's own.
    let module = fs::read(directory.join("nf_flow_table")).unwrap_or_default();
    Ok(layout(&base, &module))
}

/// What a program that asks conntrack has to know of this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conntrack {
    /// Numbers of types: `bpf_skb_ct_lookup` and `bpf_ct_release`.
    pub(super) lookup: u32,
    pub(super) release: u32,
    /// They belong to the module's types, not to those of the kernel itself.
    pub(super) in_module: bool,
    /// `nf_conn.status`, in bytes.
    pub(super) status: u32,
    /// The tuples of both directions in `nf_conn`, in bytes.
    pub(super) tuples: [u32; 2],
}

/// The same for conntrack. `None` if this kernel has no such functions (before Linux 6.1, or without types of its modules).
pub(super) fn conntrack_of_this_kernel() -> io::Result<Option<Conntrack>> {
    let directory = Path::new("/sys/kernel/btf");
    let base = fs::read(directory.join("vmlinux"))?;
    let module = fs::read(directory.join(CONNTRACK)).unwrap_or_default();
    Ok(conntrack(&base, &module))
}

/// Name of conntrack's module.
pub(super) const CONNTRACK: &str = "nf_conntrack";

fn conntrack(base: &[u8], module: &[u8]) -> Option<Conntrack> {
    let types = Types::new(base, module)?;
    let tuple = types.offset("nf_conntrack_tuple_hash", "tuple")?;
    let first = types.offset("nf_conn", "tuplehash")? + tuple;
    // What the program reads of a tuple.
    let fits = types.size("nf_conntrack_tuple")? == 40
        && types.offset("nf_conntrack_tuple", "dst")? == 20
        && types.offset("nf_conntrack_man", "u")? == 16;
    let (lookup, release) = (types.function("bpf_skb_ct_lookup")?, types.function("bpf_ct_release")?);
    let found = Conntrack {
        lookup,
        release,
        in_module: types.is_in_module(lookup),
        status: types.offset("nf_conn", "status")?,
        tuples: [first, first + types.size("nf_conntrack_tuple_hash")?],
    };
    (fits && types.is_in_module(release) == found.in_module).then_some(found)
}

pub(super) fn layout(base: &[u8], module: &[u8]) -> Option<Probe> {
    let types = Types::new(base, module)?;
    let tuple = |member| types.offset("flow_offload_tuple", member);
    let fits = tuple("src_port")? == Probe::PORTS
        && tuple("l3proto")? == Probe::PROTOCOLS
        && tuple("l4proto")? == Probe::PROTOCOLS + 1
        && types.offset("flow_offload_tuple_rhash", "tuple")? == Probe::TUPLE
        && types.offset("flow_offload", "tuplehash")? == 0;
    let probe = Probe {
        connection: types.offset("flow_offload", "ct")?,
        net: types.offset("nf_conn", "ct_net")?,
        number: types.offset("net", "ns")? + types.offset("ns_common", "inum")?,
        stride: types.size("flow_offload_tuple_rhash")?,
        ..Probe::default()
    };
    fits.then_some(probe)
}

/// One file: the sections of types and of strings.
struct Section<'b> {
    types: &'b [u8],
    strings: &'b [u8],
}

/// The types of the kernel, and of a module whose numbers and strings go on where the kernel's end.
struct Types<'b> {
    sections: Vec<Section<'b>>,
    /// Section and offset of each type; the first is `void`.
    index: Vec<(usize, usize)>,
}

impl<'b> Types<'b> {
    fn new(base: &'b [u8], module: &'b [u8]) -> Option<Self> {
        let mut types = Self { sections: Vec::new(), index: vec![(0, 0)] };
        for bytes in [base, module].into_iter().filter(|bytes| !bytes.is_empty()) {
            types.add(bytes)?;
        }
        Some(types)
    }

    fn add(&mut self, bytes: &'b [u8]) -> Option<()> {
        let header = word(bytes, 4)? as usize;
        let section = |at: usize| {
            let (offset, length) = (word(bytes, at)? as usize, word(bytes, at + 4)? as usize);
            bytes.get(header + offset..header + offset + length)
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut at = 0;
        while at < types.len() {
            self.index.push((self.sections.len(), at));
            let info = word(types, at + 4)?;
            let count = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 0x1f {
                    // Integers, variables, tags.
                    1 | 14 | 17 => 4,
                    3 => 12,
                    KIND_STRUCT | KIND_UNION | 15 | 19 => MEMBER * count,
                    6 | 13 => 8 * count,
                    _ => 0,
                };
        }
        self.sections.push(Section { types, strings });
        Some(())
    }

    /// Offset of a member in bytes; those of structs and unions without a name count as the outer one's.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.member(self.find(structure)?, member, DEPTH)
    }

    /// In bytes.
    fn size(&self, structure: &str) -> Option<u32> {
        let (section, at) = *self.index.get(self.find(structure)?)?;
        word(self.sections[section].types, at + 8)
    }

    /// Number of a function.
    fn function(&self, name: &str) -> Option<u32> {
        let is_it = |&(section, at): &(usize, usize)| {
            let types = self.sections[section].types;
            let is_function = word(types, at + 4)? >> 24 & 0x1f == KIND_FUNCTION;
            (is_function && self.string(word(types, at)?)? == name.as_bytes()).then_some(())
        };
        let id = (1..self.index.len()).find(|id| is_it(&self.index[*id]).is_some())?;
        u32::try_from(id).ok()
    }

    fn is_in_module(&self, id: u32) -> bool {
        self.index.get(id as usize).is_some_and(|(section, _)| *section > 0)
    }

    fn find(&self, structure: &str) -> Option<usize> {
        let is_it = |&(section, at): &(usize, usize)| {
            let types = self.sections[section].types;
            let info = word(types, at + 4)?;
            // A declaration has no members.
            let whole = info >> 24 & 0x1f == KIND_STRUCT && info & 0xffff > 0;
            (whole && self.string(word(types, at)?)? == structure.as_bytes()).then_some(())
        };
        (1..self.index.len()).find(|id| is_it(&self.index[*id]).is_some())
    }

    fn member(&self, id: usize, member: &str, depth: u32) -> Option<u32> {
        let (section, at) = *self.index.get(id)?;
        let types = self.sections[section].types;
        let info = word(types, at + 4)?;
        if !matches!(info >> 24 & 0x1f, KIND_STRUCT | KIND_UNION) || depth == 0 {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|place| {
            let at = at + 12 + MEMBER * place;
            let (name, inner) = (self.string(word(types, at)?)?, word(types, at + 4)? as usize);
            // With a bit field among the members, the upper byte is its width.
            let offset = word(types, at + 8)? & if info >> 31 == 0 { u32::MAX } else { 0xff_ffff };
            if name == member.as_bytes() {
                return Some(offset / 8);
            }
            let nested = if name.is_empty() { self.member(inner, member, depth - 1) } else { None };
            nested.map(|nested| offset / 8 + nested)
        })
    }

    /// Without the zero at its end.
    fn string(&self, mut at: u32) -> Option<&'b [u8]> {
        for section in &self.sections {
            let length = section.strings.len() as u32;
            if at < length {
                return section.strings[at as usize..].split(|byte| *byte == 0).next();
            }
            at -= length;
        }
        None
    }
}

/// A number in this machine's byte order.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts a file together: names at fixed places, types as their words.
    fn file(strings: &[u8], types: &[u32]) -> Vec<u8> {
        let length = 4 * types.len() as u32;
        let header = [0x0001_eb9f, 24, 0, length, length, strings.len() as u32];
        let words = header.iter().chain(types).flat_map(|word| word.to_ne_bytes());
        words.chain(strings.iter().copied()).collect()
    }

    const STRUCT: u32 = KIND_STRUCT << 24;

    #[test]
    fn members_are_found_in_structs_without_a_name_and_across_files() {
        // 1: int; 2: a struct without name { b at 32 bits }; 3: outer { a at 0, the struct at 64 }.
        let base = file(
            b"\0outer\0a\0b\0",
            &[
                0,
                1 << 24,
                4,
                32,
                0,
                STRUCT | 1,
                8,
                9,
                1,
                32, //
                1,
                STRUCT | 2,
                16,
                7,
                1,
                0,
                0,
                2,
                64,
            ],
        );
        // 4, named in its own strings, which go on at 11: late { a at 3 bytes, with a bit field of 5 beside }.
        let module = file(b"late\0", &[11, 1 << 31 | STRUCT | 1, 24, 7, 1, 5 << 24 | 24]);
        let types = Types::new(&base, &module).expect("two files");
        assert_eq!(types.offset("outer", "a"), Some(0));
        assert_eq!(types.offset("outer", "b"), Some(12));
        assert_eq!(types.offset("late", "a"), Some(3));
        assert_eq!(types.size("late"), Some(24));
        assert_eq!(types.offset("outer", "c"), None);
        assert_eq!(types.offset("none", "a"), None);
    }

    #[test]
    fn what_is_cut_short_has_no_layout() {
        let base = file(b"\0outer\0", &[1, STRUCT | 1, 16, 1, 0]);
        assert!(Types::new(&base, &[]).is_some());
        assert_eq!(layout(&base, &[]), None);
        assert_eq!(layout(&base[..20], &[]), None);
    }
}
