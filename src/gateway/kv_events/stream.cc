#include "gateway/kv_events/stream.h"

#include <xxhash.h>

#include <algorithm>
#include <utility>

namespace sluice::gateway {
namespace {

using protocol::KvEvent;
using std::chrono::milliseconds;

constexpr milliseconds kPatience{1000};      // with an answer of which nothing comes
constexpr milliseconds kReordering{200};     // what is missing may still come by itself, where nobody can be asked
constexpr milliseconds kQuiet{300};          // after which one asks whether the last messages were lost
constexpr milliseconds kBetween{50};         // questions
constexpr milliseconds kAfterSilence{5000};  // on a question: until the next one
constexpr size_t kMostEarly = 10000;         // messages
constexpr size_t kMostEarlyBytes = 64 << 20;

uint64_t hash_of(std::string_view payload) { return XXH3_64bits(payload.data(), payload.size()); }

bool is_of_gpu(const KvEvent& event) { return event.medium.empty() || event.medium == "GPU"; }

}  // namespace

KvStream::KvStream(const KvPublisher& publisher, routing::BlockIndex& index) : publisher_(publisher), index_(index) {}

std::string_view KvStream::why() const {
  if (!is_connected_) return "the publisher of its KV events is not connected";
  if (!has_joined_) return "its KV events so far are being asked for";
  return known_ == KvKnowledge::kPart ? partial_why_ : "";
}

void KvStream::connected(TimePoint now) {
  is_connected_ = true;
  rejoin(now);
}

// Whatever is behind the connection may be another process: the answer tells.
void KvStream::rejoin(TimePoint now) {
  ++counts_.joins;
  early_.clear();
  early_bytes_ = 0;
  gap_since_.reset();
  last_message_at_.reset();
  question_ = Question::kNone;
  has_joined_ = !publisher_.can_replay;
  not_before_ = silent_until_ = now;
  if (publisher_.can_replay) {
    want(0);
  } else {
    begin(KvKnowledge::kPart, std::nullopt);
    partial_why_ = "its cache was filled before its KV events were heard";
  }
}

// Knows nothing yet but what comes from `next` on.
void KvStream::begin(KvKnowledge knowledge, std::optional<uint64_t> next) {
  index_.clear(publisher_.worker);
  known_ = knowledge;
  partial_why_ = "its KV events reach back no further than the publisher's buffer";
  next_ = next;
  first_ = {};
  latest_.fill({});
}

void KvStream::want(uint64_t from) {
  question_ = Question::kWanted;
  ask_from_ = from;
  nothing_yet_ = true;
  is_comparing_ = is_passed_over_ = false;
}

void KvStream::received(uint64_t sequence, std::string_view payload, TimePoint now) {
  if (!is_connected_ || !has_joined_) return hold(sequence, payload);
  last_message_at_ = now;
  take_first(sequence);
  if (sequence < *next_) {
    if (!is_of_another_life(sequence, payload)) {
      ++counts_.duplicates;
      return;
    }
    // Its connection broke and was made again before anybody said so.
    rejoin(now);
    return received(sequence, payload, now);
  }
  if (sequence == *next_) {
    apply(payload);
  } else {
    hold(sequence, payload);
  }
  drain(now);
}

// Where nothing is known of what came before, whatever comes is the next one.
void KvStream::take_first(uint64_t sequence) {
  if (next_) return;
  next_ = sequence;
  if (sequence == 0) known_ = KvKnowledge::kAll;
}

bool KvStream::is_of_another_life(uint64_t sequence, std::string_view payload) const {
  for (const Seen& seen : {first_, latest_[sequence % latest_.size()]}) {
    if (seen.sequence == sequence) return seen.hash != hash_of(payload);
  }
  return false;
}

void KvStream::hold(uint64_t sequence, std::string_view payload) {
  // Without room it is as good as lost: it will be missing.
  if (early_.size() >= kMostEarly || early_bytes_ + payload.size() > kMostEarlyBytes) return;
  const auto [at, is_new] = early_.try_emplace(sequence, payload);
  if (is_new) early_bytes_ += payload.size();
}

// Applies what is in order.
void KvStream::drain(TimePoint now) {
  while (!early_.empty()) {
    const auto first = early_.begin();
    take_first(first->first);
    if (first->first > *next_) {
      if (!gap_since_ || gap_end_ != first->first) {
        gap_since_ = now;
        gap_end_ = first->first;
        ++counts_.gaps;
      }
      if (publisher_.can_replay && question_ == Question::kNone) want(*next_);
      return;
    }
    if (first->first == *next_) {
      apply(first->second);
    } else {
      ++counts_.duplicates;
    }
    early_bytes_ -= first->second.size();
    early_.erase(first);
  }
  gap_since_.reset();
}

void KvStream::resync(std::string_view why, TimePoint now) {
  ++counts_.resyncs;
  gap_since_.reset();
  begin(KvKnowledge::kPart, std::nullopt);
  partial_why_ = why;
  drain(now);
}

void KvStream::replayed(uint64_t sequence, std::string_view payload, TimePoint now) {
  if (question_ != Question::kAsked) return;
  heard_at_ = now;
  if (is_passed_over_) return;
  if (!has_joined_) return join_with(sequence, payload);
  take_first(sequence);
  if (sequence < *next_) return;
  if (sequence > *next_) {
    // The buffer does not reach back so far.
    hold(sequence, payload);
    return resync("KV events were lost, and the publisher's buffer has them no longer", now);
  }
  apply(payload);
  drain(now);
}

void KvStream::join_with(uint64_t sequence, std::string_view payload) {
  if (std::exchange(nothing_yet_, false)) {
    is_comparing_ = next_ && sequence > 0 && sequence < *next_;
    if (!is_comparing_) begin(sequence == 0 ? KvKnowledge::kAll : KvKnowledge::kPart, sequence);
  }
  if (is_comparing_) {
    if (sequence + 1 < *next_) return;
    is_comparing_ = false;
    if (!is_of_another_life(sequence, payload)) return;  // it is the one that was heard before: on from there
    next_.reset();
    is_passed_over_ = true;
    return;
  }
  if (sequence > *next_) begin(KvKnowledge::kPart, sequence);
  if (sequence == *next_) apply(payload);
}

void KvStream::replay_ended(TimePoint now) {
  if (question_ != Question::kAsked) return;
  question_ = Question::kNone;
  if (has_joined_) {
    if (!gap_since_) return;
    if (asked_at_ < *gap_since_) return want(*next_);
    resync("KV events were lost, and the publisher's buffer has them no longer", now);
    return;
  }
  if (is_passed_over_ || is_comparing_) {
    next_.reset();
    return want(0);
  }
  if (nothing_yet_) begin(KvKnowledge::kAll, 0);  // it has published nothing
  has_joined_ = true;
  last_message_at_ = now;
  drain(now);
}

KvStream::Due KvStream::due(TimePoint now) {
  if (!is_connected_) return {};
  if (question_ == Question::kAsked && now - heard_at_ >= kPatience) {
    question_ = Question::kNone;
    silent_until_ = now + kAfterSilence;
    if (!has_joined_) {
      has_joined_ = true;
      resync("the publisher of its KV events does not answer at its replay endpoint", now);
    }
  }
  const bool nobody_to_ask = !publisher_.can_replay || now < silent_until_;
  if (gap_since_ && question_ != Question::kAsked && nobody_to_ask && now - *gap_since_ >= kReordering) {
    question_ = Question::kNone;
    resync("KV events were lost, and there is no replay endpoint that answers", now);
  }
  if (has_joined_ && publisher_.can_replay && question_ == Question::kNone && last_message_at_ &&
      now - *last_message_at_ >= kQuiet) {
    last_message_at_.reset();
    want(next_.value_or(0));
  }
  if (question_ != Question::kWanted || now < std::max(not_before_, silent_until_)) return {};
  question_ = Question::kAsked;
  asked_at_ = heard_at_ = now;
  not_before_ = now + kBetween;
  return {.ask_from = ask_from_, .is_new_question = true};
}

std::optional<TimePoint> KvStream::next_due(TimePoint now) const {
  if (!is_connected_) return std::nullopt;
  if (question_ == Question::kAsked) return heard_at_ + kPatience;
  std::optional<TimePoint> next;
  const auto at = [&](TimePoint when) { next = next ? std::min(*next, when) : when; };
  if (question_ == Question::kWanted) at(std::max(not_before_, silent_until_));
  // As due() looks at them: a time that has passed and that it does not act on would make its thread spin.
  const bool nobody_to_ask = !publisher_.can_replay || now < silent_until_;
  if (gap_since_ && nobody_to_ask) at(*gap_since_ + kReordering);
  const bool may_ask = has_joined_ && publisher_.can_replay && question_ == Question::kNone;
  if (may_ask && last_message_at_) at(*last_message_at_ + kQuiet);
  return next;
}

void KvStream::apply(std::string_view payload) {
  const Seen seen{*next_, hash_of(payload)};
  if (*next_ == 0) first_ = seen;
  latest_[*next_ % latest_.size()] = seen;
  ++*next_;
  ++counts_.batches;
  const auto batch = protocol::decode_kv_events(payload);
  if (!batch.ok()) {
    ++counts_.unreadable;
    known_ = KvKnowledge::kPart;
    partial_why_ = "a batch of its KV events could not be read";
    return;
  }
  counts_.unreadable += batch->unreadable;
  if (publisher_.rank && batch->dp_rank && *publisher_.rank != *batch->dp_rank) {
    counts_.ignored += batch->events.size();
    return;
  }
  for (const KvEvent& event : batch->events) {
    switch (event.kind) {
      case KvEvent::Kind::kStored:
        apply_stored(event);
        break;
      case KvEvent::Kind::kRemoved:
        if (is_ignored(event)) {
          ++counts_.ignored;
          break;
        }
        for (const uint64_t hash : event.hashes) index_.remove(publisher_.worker, hash);
        break;
      case KvEvent::Kind::kCleared:
        index_.clear(publisher_.worker);
        known_ = KvKnowledge::kAll;
        break;
    }
  }
}

// A hybrid cache names the blocks of each of its groups; that of full attention says what a prompt need not compute.
bool KvStream::is_ignored(const KvEvent& event) {
  if (!is_of_gpu(event) || event.keyed) return true;
  if (!event.group) return false;
  if (event.kind == KvEvent::Kind::kStored && !group_) {
    const std::string& kind = event.group_kind;
    if (kind.empty() || kind.starts_with("full") || kind.starts_with("mla")) group_ = event.group;
  }
  return event.group != group_;
}

void KvStream::apply_stored(const KvEvent& event) {
  if (is_ignored(event)) {
    ++counts_.ignored;
    return;
  }
  if (!publisher_.block_size) publisher_.block_size = event.block_size;
  if (event.block_size != *publisher_.block_size) {
    other_block_size_ = event.block_size;
    ++counts_.ignored;
    return;
  }
  const auto size = static_cast<size_t>(event.block_size);
  std::optional<uint64_t> parent = event.parent;
  for (size_t i = 0; i < event.hashes.size(); ++i) {
    using Stored = routing::BlockIndex::Stored;
    const auto tokens = std::span(event.token_ids).subspan(i * size, size);
    const Stored stored = index_.store(publisher_.worker, event.hashes[i], parent, tokens);
    parent = event.hashes[i];
    if (stored == Stored::kConflict) ++counts_.conflicts;
    if (stored == Stored::kNoParent || stored == Stored::kFull) {
      const size_t left = event.hashes.size() - i;
      (stored == Stored::kFull ? counts_.refused : counts_.unplaced) += left;
      if (stored == Stored::kFull) {
        known_ = KvKnowledge::kPart;
        partial_why_ = "the block index is full (--kv-index-bytes)";
      }
      return;
    }
  }
}

}  // namespace sluice::gateway
