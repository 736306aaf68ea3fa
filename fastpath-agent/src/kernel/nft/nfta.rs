//! Numbers of nf_tables' attributes and flags (include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h), for messages that are
//! read in place and for requests. What libnftnl writes has its names.

/// Of all kinds of objects: the name of the table.
pub(super) const TABLE: u16 = 1;
/// Of rules the chain, of elements the set, of flowtables and other objects their own name.
pub(super) const SECOND_NAME: u16 = 2;

pub(super) const TABLE_USERDATA: u16 = 6;

pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_HOOKNUM: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const HOOK_DEV: u16 = 3;
pub(super) const HOOK_DEVS: u16 = 4;
pub(super) const DEVICE_NAME: u16 = 1;
pub(super) const DEVICE_PREFIX: u16 = 2;

pub(super) const FLOWTABLE_HOOK: u16 = 3;
pub(super) const FLOWTABLE_HOOK_DEVS: u16 = 3;
pub(super) const FLOWTABLE_HOOK_PRIORITY: u16 = 2;
pub(super) const FLOWTABLE_FLAGS: u16 = 7;

pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DESCRIPTION: u16 = 9;
pub(super) const SET_DESCRIPTION_SIZE: u16 = 1;
pub(super) const SET_TIMEOUT: u16 = 11;
pub(super) const SET_HANDLE: u16 = 16;
pub(super) const SET_EXPR: u16 = 17;
pub(super) const SET_EXPRESSIONS: u16 = 18;
/// `NFT_SET_INTERVAL` and `NFT_SET_CONCAT` (enum nft_set_flags).
pub(super) const SET_INTERVALS: u32 = 0x4 | 0x80;
/// `NFT_SET_TIMEOUT`: elements run out.
pub(super) const SET_EXPIRES: u32 = 0x10;
/// `NFT_SET_EVAL`: packets put some in.
pub(super) const SET_FILLED: u32 = 0x20;

pub(super) const SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const LIST_ELEM: u16 = 1;
pub(super) const SET_ELEM_KEY: u16 = 1;
pub(super) const SET_ELEM_DATA: u16 = 2;
pub(super) const SET_ELEM_FLAGS: u16 = 3;
pub(super) const SET_ELEM_EXPIRATION: u16 = 5;
pub(super) const SET_ELEM_EXPR: u16 = 7;
/// `NFT_SET_ELEM_INTERVAL_END`.
pub(super) const SET_ELEM_INTERVAL_END: u32 = 1;

pub(super) const OBJECT_TYPE: u16 = 3;
/// `NFT_OBJECT_CT_TIMEOUT`.
pub(super) const CT_TIMEOUT: u32 = 7;

pub(super) const GEN_ID: u16 = 1;
pub(super) const GEN_PROC_PID: u16 = 2;
pub(super) const GEN_PROC_NAME: u16 = 3;

pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;
pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
pub(super) const DYNSET_SET_NAME: u16 = 1;
pub(super) const DYNSET_OP: u16 = 3;
pub(super) const DYNSET_SREG_KEY: u16 = 4;
pub(super) const DYNSET_SREG_DATA: u16 = 5;
pub(super) const DYNSET_TIMEOUT: u16 = 6;
pub(super) const DYNSET_FLAGS: u16 = 9;
pub(super) const DYNSET_EXPR: u16 = 7;
pub(super) const DYNSET_EXPRESSIONS: u16 = 10;
pub(super) const OBJREF_IMM_TYPE: u16 = 1;
pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_KEY: u16 = 2;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;
pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;
pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
pub(super) const RT_DREG: u16 = 1;
pub(super) const RT_KEY: u16 = 2;
pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;
pub(super) const PAYLOAD_SREG: u16 = 5;
pub(super) const EXTHDR_DREG: u16 = 1;
pub(super) const EXTHDR_OP: u16 = 6;
pub(super) const EXTHDR_SREG: u16 = 7;
pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;
pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;
pub(super) const RANGE_SREG: u16 = 1;
pub(super) const RANGE_FROM: u16 = 3;
pub(super) const RANGE_TO: u16 = 4;
pub(super) const BYTEORDER_SREG: u16 = 1;
pub(super) const BYTEORDER_DREG: u16 = 2;
pub(super) const BYTEORDER_OP: u16 = 3;
pub(super) const BYTEORDER_LEN: u16 = 4;
pub(super) const BYTEORDER_SIZE: u16 = 5;
pub(super) const COUNTER_BYTES: u16 = 1;
pub(super) const COUNTER_PACKETS: u16 = 2;
pub(super) const FLOW_TABLE_NAME: u16 = 1;
/// Of matches and targets of xtables alike.
pub(super) const XT_NAME: u16 = 1;
pub(super) const XT_INFO: u16 = 3;
