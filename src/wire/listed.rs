//! Lists in messages.

use std::fmt::Write as _;

/// Bytes of a list in a message; further members are counted only, so that the rest of the message is seen.
const LIST_LIMIT: usize = 200;

/// `members`, as many as a message has room for, and the number of the others.
pub(super) fn listed<T: std::fmt::Display>(members: impl ExactSizeIterator<Item = T>) -> String {
    let mut left = members.len();
    let mut text = String::new();
    for member in members {
        let member = member.to_string();
        if !text.is_empty() {
            if text.len() + member.len() > LIST_LIMIT {
                break;
            }
            text.push_str(", ");
        }
        text.push_str(&member);
        left -= 1;
    }
    if left > 0 {
        // Writing into a string cannot fail.
        let _ = write!(text, " and {left} more");
    }
    text
}
