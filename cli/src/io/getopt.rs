//! Options of a command: single letters, bundled or not, some with a value, before or among the arguments.

/// What was given: options in order, with their values, and the arguments.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Given<'a> {
    options: Vec<(char, Option<&'a str>)>,
    pub(super) arguments: Vec<&'a str>,
}

impl<'a> Given<'a> {
    /// Reads `words` by `accepted`, letters of which a colon follows those with a value. Fails with what is wrong.
    pub(super) fn parse(words: &[&'a str], accepted: &str) -> Result<Self, String> {
        let mut given = Given::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--" {
                given.arguments.extend(words.by_ref());
                break;
            }
            let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
                given.arguments.push(word);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                let place = accepted.find(letter).filter(|_| letter != ':');
                let Some(place) = place else { return Err(format!("invalid option -- '{letter}'")) };
                if !accepted[place + letter.len_utf8()..].starts_with(':') {
                    given.options.push((letter, None));
                    continue;
                }
                let after = &letters[at + letter.len_utf8()..];
                let value = if after.is_empty() { words.next().copied() } else { Some(after) };
                let Some(value) = value else { return Err(format!("option requires an argument -- '{letter}'")) };
                given.options.push((letter, Some(value)));
                break;
            }
        }
        Ok(given)
    }

    /// The options without their values, to be kept longer than the words.
    pub(super) fn flags(&self) -> Given<'static> {
        Given { options: self.options.iter().map(|(letter, _)| (*letter, None)).collect(), arguments: Vec::new() }
    }

    pub(super) fn has(&self, letter: char) -> bool {
        self.options.iter().any(|(given, _)| *given == letter)
    }

    /// The value given last for an option.
    pub(super) fn value(&self, letter: char) -> Option<&'a str> {
        self.options.iter().rev().find(|(given, _)| *given == letter).and_then(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::Given;

    #[test]
    fn letters_can_be_bundled_and_values_attached() {
        let given = Given::parse(&["-zuP", "5", "0", "-q", "64k"], "P:quz").unwrap();
        assert!(given.has('z') && given.has('u') && given.has('q'));
        assert_eq!(given.value('P'), Some("5"));
        assert_eq!(given.arguments, ["0", "64k"]);
        assert_eq!(Given::parse(&["-P0x1f"], "P:").unwrap().value('P'), Some("0x1f"));
        assert_eq!(Given::parse(&["-1"], "P:").unwrap_err(), "invalid option -- '1'");
        assert_eq!(Given::parse(&["-P"], "P:").unwrap_err(), "option requires an argument -- 'P'");
    }
}
