//! Safe handles on libnftnl's objects for what the nftnl crate lacks in writing them: user data of tables, rules and sets (our
//! mark of ownership), flowtables, sets of any shape, expressions such as `flow_offload` and `dynset`, batches that hold at one
//! generation. Messages that the crate can write are its own ([`Scratch::crate_message`]).
//!
//! Reads nothing: libnftnl ends the process where a message isn't as it expects it, and takes names for C strings.
#![expect(unsafe_code, reason = "libnftnl is a C library")]

use std::{
    ffi::{CString, c_char},
    ptr::{self, NonNull},
};

use libc::nlmsghdr;
use nftnl::{MsgType, NlMsg, nft_nlmsg_maxsize};
use nftnl_sys as sys;

use crate::core::model::IfName;

/// Longest value in a register (`NFT_DATA_VALUE_MAXLEN`); libnftnl doesn't check it.
pub(super) const MAX_DATA_BYTES: usize = 64;

/// Something that libnftnl writes into a message behind the header.
pub(super) trait Payload {
    /// Writes the attributes.
    ///
    /// # Safety
    /// `header` is a finished message header with [`nft_nlmsg_maxsize`] bytes of room.
    unsafe fn write(&self, header: *mut nlmsghdr);
}

/// Room for one message, where libnftnl writes it.
pub(super) struct Scratch(Vec<nlmsghdr>);

impl Scratch {
    pub(super) fn new() -> Self {
        // SAFETY: nlmsghdr is plain integers.
        let zero: nlmsghdr = unsafe { std::mem::zeroed() };
        Self(vec![zero; (nft_nlmsg_maxsize() as usize).div_ceil(size_of::<nlmsghdr>())])
    }

    /// A whole nf_tables message of the inet family.
    pub(super) fn message(&mut self, kind: i32, flags: i32, sequence: u32, payload: &dyn Payload) -> &[u8] {
        let family = libc::NFPROTO_INET as u16;
        // SAFETY: the buffer is aligned for a header and has room for the largest message.
        let header = unsafe {
            let buffer = self.0.as_mut_ptr().cast::<c_char>();
            let header = sys::nftnl_nlmsg_build_hdr(buffer, kind as u16, family, flags as u16, sequence);
            payload.write(header);
            header
        };
        self.written(header)
    }

    /// A message of the nftnl crate.
    pub(super) fn crate_message(&mut self, sequence: u32, message: &dyn NlMsg, kind: MsgType) -> &[u8] {
        let buffer = self.0.as_mut_ptr();
        // SAFETY: the buffer has room for the largest message.
        unsafe { message.write(buffer.cast(), sequence, kind) };
        self.written(buffer)
    }

    /// The message that begins a batch, which the kernel accepts at `generation` only (if there is one).
    pub(super) fn batch_begin(&mut self, sequence: u32, generation: Option<u32>) -> &[u8] {
        // SAFETY: as in `message`.
        let header = unsafe {
            let header = sys::nftnl_batch_begin(self.0.as_mut_ptr().cast(), sequence);
            if let Some(generation) = generation {
                mnl::mnl_sys::mnl_attr_put_u32(header, libc::NFNL_BATCH_GENID as u16, generation.to_be());
            }
            header
        };
        self.written(header)
    }

    /// The message that ends a batch.
    pub(super) fn batch_end(&mut self, sequence: u32) -> &[u8] {
        // SAFETY: as in `message`.
        let header = unsafe { sys::nftnl_batch_end(self.0.as_mut_ptr().cast(), sequence) };
        self.written(header)
    }

    fn written(&self, header: *const nlmsghdr) -> &[u8] {
        assert_eq!(header, self.0.as_ptr(), "libnftnl writes where it is told");
        let length = self.0[0].nlmsg_len as usize;
        assert!(length <= size_of_val(self.0.as_slice()), "a message of libnftnl fits the room for it");
        // SAFETY: the buffer is initialised and at least `length` long; u8 has no alignment.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), length) }
    }
}

/// No attributes at all.
impl Payload for () {
    unsafe fn write(&self, _: *mut nlmsghdr) {}
}

/// What all objects have in common.
pub(super) trait Object: Sized {
    fn new() -> Self;

    fn set(self, attribute: u32, data: &[u8]) -> Self;

    fn set_u32(self, attribute: u32, value: u32) -> Self {
        self.set(attribute, &value.to_ne_bytes())
    }

    fn set_str(self, attribute: u32, value: &str) -> Self {
        self.set(attribute, c_string(value).as_bytes_with_nul())
    }
}

macro_rules! object {
    ($(#[$doc:meta])* $name:ident = $type:ident {
        $alloc:ident, $free:ident, $set:ident, $build:ident $(,)?
    }) => {
        $(#[$doc])*
        pub(super) struct $name(NonNull<sys::$type>);

        impl Object for $name {
            fn new() -> Self {
                // SAFETY: allocates, no preconditions.
                Self(NonNull::new(unsafe { sys::$alloc() }).expect("out of memory"))
            }

            fn set(self, attribute: u32, data: &[u8]) -> Self {
                // SAFETY: libnftnl copies `data`.
                let result = unsafe {
                    sys::$set(self.0.as_ptr(), attribute as u16, data.as_ptr().cast(), data.len() as u32)
                };
                assert!(result >= 0, "out of memory");
                self
            }
        }

        impl Payload for $name {
            unsafe fn write(&self, header: *mut nlmsghdr) {
                // SAFETY: the caller vouches for `header`.
                unsafe { sys::$build(header, self.0.as_ptr()) }
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: nothing else has the object.
                unsafe { sys::$free(self.0.as_ptr()) }
            }
        }
    };
}

object!(
    /// A table.
    Table = nftnl_table {
        nftnl_table_alloc, nftnl_table_free, nftnl_table_set_data,
        nftnl_table_nlmsg_build_payload,
    }
);
object!(
    /// A rule.
    Rule = nftnl_rule {
        nftnl_rule_alloc, nftnl_rule_free, nftnl_rule_set_data,
        nftnl_rule_nlmsg_build_payload,
    }
);
object!(
    /// A flowtable.
    Flowtable = nftnl_flowtable {
        nftnl_flowtable_alloc, nftnl_flowtable_free, nftnl_flowtable_set_data,
        nftnl_flowtable_nlmsg_build_payload,
    }
);
object!(
    /// A set without its elements.
    Set = nftnl_set {
        nftnl_set_alloc, nftnl_set_free, nftnl_set_set_data,
        nftnl_set_nlmsg_build_payload,
    }
);
object!(
    /// Elements of a set.
    Elements = nftnl_set {
        nftnl_set_alloc, nftnl_set_free, nftnl_set_set_data,
        nftnl_set_elems_nlmsg_build_payload,
    }
);

impl Rule {
    /// Appends an instruction.
    pub(super) fn push(self, expr: ExprObject) -> Self {
        // SAFETY: both are owned here; the rule takes over the instruction and frees it.
        unsafe { sys::nftnl_rule_add_expr(self.0.as_ptr(), expr.0.as_ptr()) };
        std::mem::forget(expr);
        self
    }
}

impl Flowtable {
    /// Sets the device names.
    pub(super) fn set_devices<'n>(self, names: impl Iterator<Item = &'n IfName>) -> Self {
        let names: Vec<CString> = names.map(|name| c_string(name.as_bytes())).collect();
        let mut array: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        array.push(ptr::null());
        // SAFETY: the array ends with NULL; libnftnl copies the strings.
        let result = unsafe {
            sys::nftnl_flowtable_set_array(
                self.0.as_ptr(),
                sys::NFTNL_FLOWTABLE_DEVICES as u16,
                array.as_mut_ptr(),
            )
        };
        assert!(result >= 0, "out of memory");
        self
    }
}

impl Elements {
    /// Adds an element.
    pub(super) fn push(self, element: Element) -> Self {
        // SAFETY: both are owned here; the set takes over the element and frees it.
        unsafe { sys::nftnl_set_elem_add(self.0.as_ptr(), element.0.as_ptr()) };
        std::mem::forget(element);
        self
    }
}

/// An element, owned until a set takes it over.
pub(super) struct Element(NonNull<sys::nftnl_set_elem>);

impl Element {
    /// An element with this key.
    pub(super) fn with_key(key: &[u8]) -> Self {
        // SAFETY: allocates, no preconditions.
        let element = Self(NonNull::new(unsafe { sys::nftnl_set_elem_alloc() }).expect("out of memory"));
        element.set(sys::NFTNL_SET_ELEM_KEY, key)
    }

    /// Sets an attribute whose value has at most [`MAX_DATA_BYTES`]. Numbers are u32 or u64 as libnftnl has them.
    pub(super) fn set(self, attribute: u32, data: &[u8]) -> Self {
        assert!(data.len() <= MAX_DATA_BYTES, "a key has at most {MAX_DATA_BYTES} bytes");
        // SAFETY: libnftnl copies `data`, into a buffer of MAX_DATA_BYTES where it isn't one integer.
        let result = unsafe {
            sys::nftnl_set_elem_set(
                self.0.as_ptr(),
                attribute as u16,
                data.as_ptr().cast(),
                data.len() as u32,
            )
        };
        assert!(result >= 0, "out of memory");
        self
    }
}

impl Drop for Element {
    fn drop(&mut self) {
        // SAFETY: no set has taken it over (`Elements::push` forgets it).
        unsafe { sys::nftnl_set_elem_free(self.0.as_ptr()) }
    }
}

/// An instruction, owned until a rule takes it over.
pub(super) struct ExprObject(NonNull<sys::nftnl_expr>);

impl ExprObject {
    /// An instruction of this kernel name; `None` if libnftnl doesn't know it.
    pub(super) fn new(name: &str) -> Option<Self> {
        // SAFETY: the name is only looked up.
        NonNull::new(unsafe { sys::nftnl_expr_alloc(c_string(name).as_ptr()) }).map(Self)
    }

    /// Sets a value of at most [`MAX_DATA_BYTES`].
    pub(super) fn set(self, attribute: u32, data: &[u8]) -> Self {
        assert!(data.len() <= MAX_DATA_BYTES, "a register's value has at most {MAX_DATA_BYTES} bytes");
        // SAFETY: libnftnl copies `data`, into a buffer of MAX_DATA_BYTES where it isn't one integer.
        let result = unsafe {
            sys::nftnl_expr_set(self.0.as_ptr(), attribute as u16, data.as_ptr().cast(), data.len() as u32)
        };
        assert!(result >= 0, "out of memory");
        self
    }

    pub(super) fn set_u32(self, attribute: u32, value: u32) -> Self {
        self.set(attribute, &value.to_ne_bytes())
    }

    /// Adds an instruction inside this one, which takes it over.
    pub(super) fn nest(self, attribute: u32, inner: Self) -> Self {
        // SAFETY: both are owned here; the outer one takes over the inner one and frees it.
        unsafe { sys::nftnl_expr_add_expr(self.0.as_ptr(), attribute, inner.0.as_ptr()) };
        std::mem::forget(inner);
        self
    }

    pub(super) fn set_str(self, attribute: u32, value: &str) -> Self {
        let value = c_string(value);
        // SAFETY: libnftnl copies the string.
        let result = unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, value.as_ptr()) };
        assert!(result >= 0, "out of memory");
        self
    }
}

impl Drop for ExprObject {
    fn drop(&mut self) {
        // SAFETY: no rule has taken it over (`Rule::push` forgets it).
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) }
    }
}

pub(super) fn c_string(text: impl Into<Vec<u8>>) -> CString {
    CString::new(text).expect("names of kernel objects hold no NUL")
}
