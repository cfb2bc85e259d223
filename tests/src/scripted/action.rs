//! The words of local parts: `ACTION`, `ACTION-N`, each with `+TAG` behind it to tell one recipient from another.

/// What is to become of a recipient, or of the whole message for its sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Action {
    /// The word.
    pub word: String,
    /// Its number: how often, or how long.
    pub number: Option<u64>,
}

impl Action {
    /// Of an address; everything that is no known word is `ok`.
    pub fn of(address: &str) -> Self {
        let local = address.rsplit_once('@').map_or(address, |(local, _)| local);
        let local = local.split_once('+').map_or(local, |(before, _)| before);
        let (word, number) = match local.rsplit_once('-') {
            Some((word, number)) => match number.parse() {
                Ok(number) => (word, Some(number)),
                Err(_) => (local, None),
            },
            None => (local, None),
        };
        Self {
            word: word.to_owned(),
            number,
        }
    }

    /// Whether it still applies on the `call`-th SubmitMessage (from 1): `-N` means the first N, none means always.
    pub fn applies(&self, call: u64) -> bool {
        self.number.is_none_or(|number| call <= number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_parts_are_words_with_numbers_and_tags() {
        let action = |word: &str, number| Action {
            word: word.to_owned(),
            number,
        };
        assert_eq!(Action::of("busy-2+x@a.example"), action("busy", Some(2)));
        assert_eq!(
            Action::of("kept-again@a.example"),
            action("kept-again", None)
        );
        assert_eq!(Action::of("ok"), action("ok", None));
        assert!(action("busy", Some(2)).applies(2) && !action("busy", Some(2)).applies(3));
    }
}
