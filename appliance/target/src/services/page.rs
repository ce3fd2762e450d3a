//! Pages of lists.

use crate::error::ControlError;

pub(super) const SIZE_DEFAULT: usize = 100;
pub(super) const SIZE_MAX: usize = 1000;

/// One page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Empty when this is the last.
    pub(super) next_page_token: String,
    /// On all pages.
    pub(super) total_size: u32,
}

/// The page after `token` of a list that is given in the order of its keys. A token is the last key
/// of a page, so that objects which come and go in between neither hide nor double others.
pub(super) fn page<T, U>(
    items: impl Iterator<Item = (String, T)>,
    page_size: u32,
    token: &str,
    build: impl Fn(T) -> U,
) -> Result<Page<U>, ControlError> {
    if token.len() > 1024 {
        let problem = "is not from a list of this server";
        return Err(ControlError::field("the request", "page_token", problem));
    }
    let size = match page_size as usize {
        0 => SIZE_DEFAULT,
        size => size.min(SIZE_MAX),
    };
    let mut page = Page {
        items: Vec::new(),
        next_page_token: String::new(),
        total_size: 0,
    };
    let mut last = String::new();
    let mut is_more = false;
    for (key, item) in items {
        page.total_size = page.total_size.saturating_add(1);
        if !token.is_empty() && key.as_str() <= token {
            continue;
        }
        if page.items.len() == size {
            is_more = true;
            continue;
        }
        page.items.push(build(item));
        last = key;
    }
    if is_more {
        page.next_page_token = last;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(range: std::ops::Range<u32>) -> impl Iterator<Item = (String, u32)> {
        range.map(|number| (format!("{number:04}"), number))
    }

    #[test]
    fn pages_cover_everything_once() {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let page = page(list(0..25), 10, &token, |number| number).unwrap();
            assert_eq!(page.total_size, 25);
            all.extend(page.items);
            token = page.next_page_token;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(all, (0..25).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_last_page_has_no_token() {
        let page = page(list(0..10), 10, "", |number| number).unwrap();
        assert_eq!((page.items.len(), page.next_page_token.as_str()), (10, ""));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(
            page(list(0..2000), 0, "", |n| n).unwrap().items.len(),
            SIZE_DEFAULT
        );
        assert_eq!(
            page(list(0..2000), u32::MAX, "", |n| n)
                .unwrap()
                .items
                .len(),
            SIZE_MAX
        );
        assert!(page(list(0..1), 0, &"x".repeat(2000), |n| n).is_err());
    }
}
