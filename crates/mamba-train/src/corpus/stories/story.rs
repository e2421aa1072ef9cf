//! One story: who owns what and where, and the sentences that tell it.

use std::iter::Cycle;
use std::vec::IntoIter;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::words::{FILLERS, HIDING_PLACES, HOMES, NAMES, QUALITIES, TIMES, TRADES, TREASURES};

/// The kinds of event; two of them hand a treasure over.
const EVENTS: u32 = 6;

/// The people and their treasures; treasure `i` was first owned by person `i`.
pub(super) struct Story {
    people: Vec<Person>,
    treasures: Vec<Treasure>,
    /// Sentences in between, none again before all were told.
    fillers: Cycle<IntoIter<&'static str>>,
    /// The kind and treasure of the last event, which does not happen twice in a row.
    last_event: (u32, usize),
}

struct Person {
    name: &'static str,
    pronoun: &'static str,
    trade: &'static str,
    home: &'static str,
}

struct Treasure {
    name: String,
    /// Index of the person who has it.
    holder: usize,
    place: &'static str,
}

impl Story {
    /// Three to five people, no two alike in anything.
    pub(super) fn new(rng: &mut Xoshiro256PlusPlus) -> Self {
        let count = rng.random_range(3..=5u32) as usize;
        let names = distinct(rng, &NAMES, count);
        let trades = distinct(rng, &TRADES, count);
        let homes = distinct(rng, &HOMES, count);
        let qualities = distinct(rng, &QUALITIES, count);
        let nouns = distinct(rng, &TREASURES, count);
        let places = distinct(rng, &HIDING_PLACES, count);
        let people = (0..count).map(|i| Person {
            name: names[i].0,
            pronoun: if names[i].1 { "she" } else { "he" },
            trade: trades[i],
            home: homes[i],
        });
        let treasures = (0..count).map(|i| Treasure {
            name: format!("{} {}", qualities[i], nouns[i]),
            holder: i,
            place: places[i],
        });
        Self {
            people: people.collect(),
            treasures: treasures.collect(),
            fillers: distinct(rng, &FILLERS, FILLERS.len()).into_iter().cycle(),
            last_event: (EVENTS, count),
        }
    }

    /// Appends the whole story: a title, paragraphs on a line each, and two blank lines.
    pub(super) fn tell(mut self, rng: &mut Xoshiro256PlusPlus, text: &mut String) {
        let hero = &self.people[0];
        let title = format!(
            "{} and the {}\n\n",
            hero.name,
            capitalised(&self.treasures[0].name)
        );
        text.push_str(&title);
        for i in 0..self.people.len() {
            text.push_str(&self.introduction(i));
            text.extend(self.fillers.next());
            text.push('\n');
        }
        for _ in 0..rng.random_range(3..=6u32) {
            for _ in 0..rng.random_range(3..=6u32) {
                let sentence = self.event(rng);
                text.push_str(&sentence);
                text.push(' ');
                for _ in 0..rng.random_range(0..=2u32) {
                    text.extend(self.fillers.next());
                    text.push(' ');
                }
            }
            text.pop();
            text.push('\n');
        }
        text.push_str(&self.ending(rng));
        text.push_str("\n\n\n");
    }

    fn introduction(&self, i: usize) -> String {
        let Person {
            name,
            pronoun,
            trade,
            home,
        } = &self.people[i];
        let Treasure {
            name: treasure,
            place,
            ..
        } = &self.treasures[i];
        let (trade_article, article) = (article(trade), article(treasure));
        let pronoun_start = capitalised(pronoun);
        format!(
            "{name} was {trade_article} {trade} and lived by the {home}. {pronoun_start} had \
             {article} {treasure} and kept it {place}. "
        )
    }

    fn event(&mut self, rng: &mut Xoshiro256PlusPlus) -> String {
        let (kind, t) = loop {
            let event = (
                rng.random_range(0..EVENTS),
                below(rng, self.treasures.len()),
            );
            if event != self.last_event {
                break event;
            }
        };
        self.last_event = (kind, t);
        let holder = self.treasures[t].holder;
        // Anyone but the holder.
        let count = self.people.len();
        let o = (holder + 1 + below(rng, count - 1)) % count;
        match kind {
            0 | 1 => self.hand_over(rng, t, o),
            2 => {
                let (other, owner) = (&self.people[o], &self.people[holder]);
                let Treasure {
                    name: treasure,
                    place,
                    ..
                } = &self.treasures[t];
                format!(
                    "\"Who has the {treasure}?\" asked {}. \"It is {}'s, and it is {place},\" said \
                     the {}.",
                    other.name, owner.name, owner.trade
                )
            }
            3 => {
                let (other, owner) = (&self.people[o], &self.people[holder]);
                format!(
                    "{} went to see {} by the {}, and they spoke of the {}.",
                    other.name, owner.name, owner.home, self.treasures[t].name
                )
            }
            4 => {
                let owner = &self.people[holder];
                format!(
                    "{} the {} looked {}, and the {} was still there.",
                    pick(rng, &TIMES),
                    owner.trade,
                    self.treasures[t].place,
                    self.treasures[t].name
                )
            }
            _ => {
                let (other, owner) = (&self.people[o], &self.people[holder]);
                format!(
                    "{} the {} dreamt that {} the {} had lost the {}.",
                    other.name, other.trade, owner.name, owner.trade, self.treasures[t].name
                )
            }
        }
    }

    fn hand_over(&mut self, rng: &mut Xoshiro256PlusPlus, t: usize, to: usize) -> String {
        let from = self.treasures[t].holder;
        let (giver, taker) = (&self.people[from], &self.people[to]);
        let treasure = &mut self.treasures[t];
        let old = treasure.place;
        treasure.place = pick(rng, &HIDING_PLACES);
        treasure.holder = to;
        format!(
            "{} took the {} from its place {old} and gave it to {} the {}, and {} hid it {}.",
            giver.name, treasure.name, taker.name, taker.trade, taker.pronoun, treasure.place
        )
    }

    fn ending(&self, rng: &mut Xoshiro256PlusPlus) -> String {
        let mut order: Vec<usize> = (0..self.people.len()).collect();
        order.shuffle(rng);
        let mut text = String::from("So the year came to its end.");
        for i in order {
            let Person {
                name, trade, home, ..
            } = &self.people[i];
            text.push_str(&format!(" {name} the {trade} went home to the {home}."));
            for treasure in self
                .treasures
                .iter()
                .filter(|treasure| treasure.holder == i)
            {
                let Treasure { name, place, .. } = treasure;
                text.push_str(&format!(" There, {place}, lay the {name}."));
            }
        }
        text
    }
}

/// An index below `n`, drawn as `u32` so that 32-bit platforms draw the same.
fn below(rng: &mut impl Rng, n: usize) -> usize {
    rng.random_range(0..n as u32) as usize
}

fn pick<T: Copy>(rng: &mut impl Rng, from: &[T]) -> T {
    from[below(rng, from.len())]
}

fn distinct<T: Copy>(rng: &mut impl Rng, from: &[T], count: usize) -> Vec<T> {
    from.sample(rng, count).copied().collect()
}

fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

fn capitalised(words: &str) -> String {
    words
        .split(' ')
        .map(|word| word[..1].to_uppercase() + &word[1..])
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_ending_tells_where_the_last_hand_over_left_each_treasure() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        for _ in 0..50 {
            let story = Story::new(&mut rng);
            let treasures: Vec<String> = story
                .treasures
                .iter()
                .map(|treasure| treasure.name.clone())
                .collect();
            let mut text = String::new();
            story.tell(&mut rng, &mut text);
            let (tale, ending) = text.split_once("So the year came to its end.").unwrap();
            for name in treasures {
                let hidden = format!("took the {name} from");
                let place = match tale.rfind(&hidden) {
                    Some(at) => tale[at..].split_once(" hid it ").unwrap().1,
                    None => {
                        let owned = tale.find(&format!("{name} and kept it ")).unwrap();
                        tale[owned..].split_once(" kept it ").unwrap().1
                    }
                };
                let place = place.split_once('.').unwrap().0;
                assert!(
                    ending.contains(&format!("There, {place}, lay the {name}.")),
                    "{text}"
                );
            }
        }
    }
}
