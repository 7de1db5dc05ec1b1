//! Which word was meant.

/// The known word that is nearest to `word`, if it is near.
pub(crate) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let most = 1 + word.len() / 4;
    let distances = known.into_iter().map(|known| (distance(word, known), known));
    distances.filter(|&(distance, _)| distance <= most).min().map(|(_, known)| known)
}

/// How many letters to add, drop or change (Levenshtein), by bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (above, y) in row.iter_mut().skip(1).zip(b.bytes()) {
            left = (diagonal + usize::from(x != y)).min(*above + 1).min(left + 1);
            diagonal = std::mem::replace(above, left);
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let known = ["size", "offset", "read-zeroes", "latency-ns"];
        assert_eq!(closest("sise", known), Some("size"));
        assert_eq!(closest("ofset", known), Some("offset"));
        assert_eq!(closest("read_zeros", known), Some("read-zeroes"));
        assert_eq!(closest("filename", known), None);
        assert_eq!(closest("", known), None);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, d) in
            [("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("a", "a", 0)]
        {
            assert_eq!(distance(a, b), d, "{a} {b}");
            assert_eq!(distance(b, a), d, "{b} {a}");
        }
    }
}
