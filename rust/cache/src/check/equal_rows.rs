//! Finds the accepted rows that may equal a new one, without looking at all of them.

use std::collections::HashMap;

use crate::check::sketch::WIDTH;

/// A cell of the grid over sketches.
pub(crate) type Cell = [i32; 2];

/// No row.
const NONE: usize = usize::MAX;

/// A hash grid of row numbers.
///
/// In each cell rows stand in classes, each of states with the same tokens, so that a row of a class
/// of many passes it in one step.
#[derive(Debug, Default, Clone)]
pub(crate) struct EqualRows {
    /// The head of each cell's first class.
    heads: HashMap<Cell, usize>,
    /// Of each row that was put into the grid, by its number.
    links: Vec<Link>,
}

/// What follows a row.
#[derive(Debug, Clone, Copy)]
struct Link {
    /// The next row of its class.
    member: usize,
    /// The head of the cell's next class, if this row is a head.
    class: usize,
}

impl EqualRows {
    /// Puts a row into a cell: into the class whose head `is_twin` finds to have the same tokens, or into
    /// a new class. Rows come with ascending numbers.
    pub(crate) fn insert(&mut self, row: usize, cell: Cell, is_twin: impl Fn(usize) -> bool) {
        self.links.resize(row + 1, Link { member: NONE, class: NONE });
        let head = self.classes(cell).find(|head| is_twin(*head));
        if let Some(head) = head {
            self.links[row].member = self.links[head].member;
            self.links[head].member = row;
        } else {
            self.links[row].class = self.heads.insert(cell, row).unwrap_or(NONE);
        }
    }

    /// The first row in a cell or beside it, of a class whose head is no twin, that `is_equal` finds
    /// to be equal.
    pub(crate) fn find(
        &self,
        [x, y]: Cell,
        is_twin: impl Fn(usize) -> bool,
        is_equal: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let around = (-1..=1).flat_map(|dx| (-1..=1).map(move |dy| (dx, dy)));
        let cells = around.map(|(dx, dy)| [x.saturating_add(dx), y.saturating_add(dy)]);
        let foreign = cells.flat_map(|cell| self.classes(cell)).filter(|head| !is_twin(*head));
        foreign.flat_map(|head| self.members(head)).find(|row| is_equal(*row))
    }

    /// Takes a row out of its cell.
    pub(crate) fn remove(&mut self, row: usize, cell: Cell) {
        let mut before = NONE;
        let mut head = self.heads.get(&cell).copied().unwrap_or(NONE);
        while head != NONE {
            if head == row {
                return self.remove_head(before, row, cell);
            }
            let previous = self.members(head).find(|member| self.links[*member].member == row);
            if let Some(previous) = previous {
                self.links[previous].member = self.links[row].member;
                return;
            }
            (before, head) = (head, self.links[head].class);
        }
    }

    /// Takes the head of a class out; the next of the class takes its place.
    fn remove_head(&mut self, before: usize, head: usize, cell: Cell) {
        let Link { member, class } = self.links[head];
        let next = if member == NONE { class } else { member };
        if member != NONE {
            self.links[member].class = class;
        }
        if before != NONE {
            self.links[before].class = next;
        } else if next == NONE {
            self.heads.remove(&cell);
        } else {
            self.heads.insert(cell, next);
        }
    }

    fn classes(&self, cell: Cell) -> impl Iterator<Item = usize> {
        self.walk(self.heads.get(&cell).copied().unwrap_or(NONE), |link| link.class)
    }

    fn members(&self, head: usize) -> impl Iterator<Item = usize> {
        self.walk(head, |link| link.member)
    }

    fn walk(&self, first: usize, next: fn(&Link) -> usize) -> impl Iterator<Item = usize> {
        let some = |row: usize| (row != NONE).then_some(row);
        std::iter::successors(some(first), move |row| some(next(self.links.get(*row)?)))
    }
}

/// The cell of a sketch, for rows that differ by at most `tolerance` of their norm.
///
/// Each coordinate is a sum of four of the sketch's numbers, so rows that near differ by at most twice
/// the tolerance in it, and lie in the same or a neighbouring cell.
pub(crate) fn cell(sketch: &[f32; WIDTH], tolerance: f32) -> Cell {
    let side = 4.0 * tolerance;
    let (left, right) = sketch.split_at(WIDTH / 2);
    #[expect(clippy::cast_possible_truncation, reason = "a float to int cast saturates")]
    let floor = |half: &[f32]| (half.iter().sum::<f32>() / side).floor() as i32;
    [floor(left), floor(right)]
}
