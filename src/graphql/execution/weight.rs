//! What an operation is charged for, as `cost` weighs it.

use crate::budgets::Work;

/// What an operation is charged for before it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Fields that are selected, fragments expanded.
    pub fields: usize,
    /// Of validation.
    pub steps: usize,
    /// Fields of price levels and candles in its result.
    pub level_fields: usize,
    /// Fields of items of other lists, at their longest. Charged once they are known.
    pub item_fields: usize,
    /// Fields of the schema's description in its result.
    pub introspection_fields: usize,
}

impl Weight {
    /// Fields that are checked and resolved; or the steps of validation, if these are more.
    pub fn checked_fields(self) -> usize {
        self.fields.max(self.steps)
    }

    /// Estimated processor time in nanoseconds of checking and resolving what is not a level.
    pub fn checking_nanos(self) -> u64 {
        let fields = Work::Field.nanos().saturating_mul(self.checked_fields() as u64);
        let described = Work::IntrospectionField.nanos();
        fields.saturating_add(described.saturating_mul(self.introspection_fields as u64))
    }

    /// Estimated processor time in nanoseconds of resolving and encoding price levels and candles.
    pub fn level_nanos(self) -> u64 {
        Work::LevelField.nanos().saturating_mul(self.level_fields as u64)
    }
}
