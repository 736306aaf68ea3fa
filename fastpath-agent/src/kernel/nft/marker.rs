//! User data of tables, rules and sets: a sequence of type, length and value, one byte each for the first two
//! (libnftnl's udata.h). `nft` passes over types that it doesn't know, so the agent's mark of ownership is there.

use crate::core::ruleset::{
    observed::Owner,
    sets::{ExcludeSet, OwnSet},
};

/// Type of our mark; nft's own types count up from 0.
const TYPE: u8 = 0xf0;
/// Content of our mark. The number is that of the format of what we leave in the kernel.
const MARK: &[u8] = b"fastpath/1";
/// `NFTNL_UDATA_TABLE_COMMENT`.
const TABLE_COMMENT_TYPE: u8 = 0;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`.
const SET_KEY_BYTE_ORDER_TYPE: u8 = 0;
/// `NFTNL_UDATA_SET_KEY_TYPEOF`.
const SET_KEY_TYPEOF_TYPE: u8 = 3;
/// `BYTEORDER_HOST_ENDIAN` of nft: set keys are integers of this machine, which nft prints as such.
const HOST_ENDIAN: u32 = 1;
/// `BYTEORDER_INVALID` of nft, for keys of a byte.
const NO_ORDER: u32 = 0;
/// `BYTEORDER_BIG_ENDIAN` of nft.
const BIG_ENDIAN: u32 = 2;

/// User data of our table: the comment that `nft list` prints, then our mark.
pub(super) fn table(comment: &str) -> Vec<u8> {
    let mut data = entry(TABLE_COMMENT_TYPE, &[comment.as_bytes(), &[0]].concat());
    data.extend(rule());
    data
}

/// User data of our rules: our mark. (A comment would show in `nft list`.)
pub(super) fn rule() -> Vec<u8> {
    entry(TYPE, MARK)
}

/// User data of our sets, by which `nft` knows how to print their keys.
pub(super) fn set(set: OwnSet) -> Vec<u8> {
    let order = |order: u32| entry(SET_KEY_BYTE_ORDER_TYPE, &order.to_ne_bytes());
    match set {
        OwnSet::Devices => return order(HOST_ENDIAN),
        OwnSet::Exclude(ExcludeSet::Protocols) => return order(NO_ORDER),
        OwnSet::Exclude(_) | OwnSet::BridgeAddresses => return order(BIG_ENDIAN),
        OwnSet::RuleInputs => return order(HOST_ENDIAN),
        // Parts have orders of their own.
        OwnSet::Bridges => return order(NO_ORDER),
        OwnSet::SlowPath | OwnSet::Assist | OwnSet::Revoked | OwnSet::Seen(_) => {}
    }
    // `typeof ct id`: number of the kind of expression (nft's `EXPR_CT`), then its own data: the key (`NFT_CT_ID`) and
    // no direction.
    let number = |kind: u8, number: u32| entry(kind, &number.to_ne_bytes());
    let ct_id = [number(0, 23), number(1, u32::MAX)].concat();
    let ct_id = [number(0, 12), entry(1, &ct_id)].concat();
    if let OwnSet::Seen(_) = set {
        // `typeof ct id . iif . oif`: nft's `EXPR_CONCAT`, its parts numbered; `EXPR_META` with the key.
        let meta = |key: u32| [number(0, 9), entry(1, &number(0, key))].concat();
        let interfaces = [libc::NFT_META_IIF, libc::NFT_META_OIF].map(|key| meta(key.cast_unsigned()));
        let [input, output] = interfaces;
        let parts = [entry(0, &ct_id), entry(1, &input), entry(2, &output)].concat();
        let expression = [number(0, 13), entry(1, &parts)].concat();
        return [order(NO_ORDER), entry(SET_KEY_TYPEOF_TYPE, &expression)].concat();
    }
    [order(BIG_ENDIAN), entry(SET_KEY_TYPEOF_TYPE, &ct_id)].concat()
}

/// Whose object it is that carries this user data.
pub(super) fn owner(mut data: &[u8]) -> Owner {
    while let [kind, length, rest @ ..] = data {
        let Some((value, next)) = rest.split_at_checked(usize::from(*length)) else { break };
        if *kind == TYPE && value == MARK {
            return Owner::Agent;
        }
        data = next;
    }
    Owner::Foreign
}

fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).expect("our user data is short");
    [&[kind, length], value].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_is_found_behind_a_comment_only_as_a_whole_entry() {
        assert_eq!(owner(&table("a comment")), Owner::Agent);
        assert_eq!(owner(&rule()), Owner::Agent);
        assert_eq!(owner(&[]), Owner::Foreign);
        assert_eq!(owner(&entry(TABLE_COMMENT_TYPE, MARK)), Owner::Foreign);
        assert_eq!(owner(&entry(TABLE_COMMENT_TYPE, &rule())), Owner::Foreign);
        assert_eq!(owner(&entry(TYPE, b"fastpath/2")), Owner::Foreign);
        assert_eq!(owner(&rule()[..5]), Owner::Foreign);
    }
}
