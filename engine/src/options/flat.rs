//! Between nested values and flat ones, `{"file": {"size": 1}}` and `file.size`.

use std::collections::BTreeMap;

use super::Scalar;
use super::json::{MAX_DEPTH, Value};

/// Adds what `value` holds to `flat`, under `key` and a dot; list items under their number.
///
/// # Errors
/// A key given twice, or nothing in an object or a list, or nested too deeply.
pub(super) fn flatten(
    key: &str,
    value: Value,
    flat: &mut BTreeMap<String, Scalar>,
) -> Result<(), String> {
    let items: Vec<(String, Value)> = match value {
        Value::Scalar(scalar) => {
            check_key(key)?;
            return match flat.insert(key.into(), scalar) {
                None => Ok(()),
                Some(_) => Err(format!("Parameter '{key}' is given twice")),
            };
        }
        Value::Object(object) => object.into_iter().collect(),
        Value::List(list) => {
            let numbered = list.into_iter().enumerate();
            numbered.map(|(index, value)| (index.to_string(), value)).collect()
        }
    };
    if items.is_empty() {
        return Err(format!("Parameter '{key}' holds nothing; leave it out"));
    }
    items.into_iter().try_for_each(|(name, value)| flatten(&format!("{key}.{name}"), value, flat))
}

/// Refuses a key with more dots than anything has.
pub(super) fn check_key(key: &str) -> Result<(), String> {
    if key.bytes().filter(|&byte| byte == b'.').count() < MAX_DEPTH {
        return Ok(());
    }
    let start: String = key.chars().take(32).collect();
    Err(format!("Parameter '{start}...' is nested too deeply"))
}

/// The opposite of [`flatten`]. An object whose keys are 0, 1, 2 and so on becomes a list.
///
/// # Errors
/// A key that is a value and has others beneath it.
pub(super) fn crumple(flat: &BTreeMap<String, Scalar>) -> Result<Value, String> {
    let mut root = Value::Object(BTreeMap::new());
    for (key, scalar) in flat {
        let conflict = || format!("Key '{key}' is beneath or above another that has a value");
        let mut at = &mut root;
        for part in key.split('.') {
            let Value::Object(object) = at else { return Err(conflict()) };
            at = object.entry(part.into()).or_insert_with(|| Value::Object(BTreeMap::new()));
        }
        match at {
            Value::Object(object) if object.is_empty() => *at = Value::Scalar(scalar.clone()),
            _ => return Err(conflict()),
        }
    }
    if let Value::Object(object) = &mut root {
        object.values_mut().for_each(make_lists);
    }
    Ok(root)
}

fn make_lists(value: &mut Value) {
    let Value::Object(object) = value else { return };
    object.values_mut().for_each(make_lists);
    let indexes = (0..object.len()).map(|index| index.to_string());
    if let Some(items) = indexes.map(|index| object.get(&index).cloned()).collect() {
        *value = Value::List(items);
    }
}
