// The stream of KV events of one publisher, put in order: what is doubled is left out, what is missing is asked for
// again, and where it cannot be had any more, what was known of the worker is dropped and known anew from there. No
// sockets and no clock in here: who has them calls, and does what due() says.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "gateway/kv_events/knowledge.h"
#include "protocol/kv_events.h"
#include "routing/block_index.h"

namespace sluice::gateway {

struct KvPublisher {
  uint32_t worker = 0;
  bool can_replay = false;
  std::optional<int64_t> block_size{};  // that it is to have; what has another one is left out
  std::optional<int64_t> rank{};        // that its batches are to name
};

struct KvStreamCounts {
  uint64_t batches = 0;     // applied
  uint64_t duplicates = 0;  // batches
  uint64_t unreadable = 0;  // batches and events
  uint64_t ignored = 0;     // events: of another medium, cache group, rank or block size, or keyed by more than tokens
  uint64_t unplaced = 0;    // blocks that follow on one that is not known
  uint64_t conflicts = 0;   // blocks whose hash had meant something else
  uint64_t refused = 0;     // blocks for which the index had no room
  uint64_t joins = 0;       // times that it began to listen, to the same process or another one
  uint64_t gaps = 0;        // in the sequence numbers
  uint64_t resyncs = 0;     // of which could not be filled
};

// One thread. Writes the index, of its worker only.
class KvStream {
 public:
  // `index` outlives this.
  KvStream(const KvPublisher& publisher, routing::BlockIndex& index);

  void connected(TimePoint now);
  void disconnected() { is_connected_ = false; }
  void received(uint64_t sequence, std::string_view payload, TimePoint now);
  // Of the answer to a question, in its order.
  void replayed(uint64_t sequence, std::string_view payload, TimePoint now);
  void replay_ended(TimePoint now);

  struct Due {
    std::optional<uint64_t> ask_from;  // ask for all from this sequence number on
    bool is_new_question = false;      // answers to earlier ones must not be heard any more
  };
  // What is to be done now; called after everything else, and at next_due().
  Due due(TimePoint now);
  std::optional<TimePoint> next_due(TimePoint now) const;

  KvKnowledge knowledge() const { return is_connected_ && has_joined_ ? known_ : KvKnowledge::kNothing; }
  // Why it is not kAll; a literal.
  std::string_view why() const;
  // Tokens of a block; 0 = not known yet.
  int64_t block_size() const { return publisher_.block_size.value_or(0); }
  // The block size that its events have instead, if any had another one.
  int64_t other_block_size() const { return other_block_size_; }
  uint64_t next_sequence() const { return next_.value_or(0); }
  const KvStreamCounts& counts() const { return counts_; }

 private:
  void begin(KvKnowledge knowledge, std::optional<uint64_t> next);
  void rejoin(TimePoint now);
  void take_first(uint64_t sequence);
  void join_with(uint64_t sequence, std::string_view payload);
  void hold(uint64_t sequence, std::string_view payload);
  void drain(TimePoint now);
  void resync(std::string_view why, TimePoint now);
  void want(uint64_t from);
  bool is_of_another_life(uint64_t sequence, std::string_view payload) const;
  void apply(std::string_view payload);
  void apply_stored(const protocol::KvEvent& event);
  bool is_ignored(const protocol::KvEvent& event);

  struct Seen {
    uint64_t sequence = ~uint64_t{0};
    uint64_t hash = 0;
  };

  KvPublisher publisher_;
  routing::BlockIndex& index_;
  KvStreamCounts counts_;

  bool is_connected_ = false;
  bool has_joined_ = false;  // the question after connecting was answered, or there is none
  KvKnowledge known_ = KvKnowledge::kNothing;
  std::string_view partial_why_;
  std::optional<uint64_t> next_;  // the sequence number that is to come; none = whichever comes
  Seen first_;                    // of this life of the publisher
  std::array<Seen, 64> latest_;
  std::map<uint64_t, std::string> early_;  // what came before what is missing
  size_t early_bytes_ = 0;
  std::optional<TimePoint> gap_since_;
  uint64_t gap_end_ = 0;  // the first that came after what is missing

  // One question at a time.
  enum class Question : uint8_t { kNone, kWanted, kAsked } question_ = Question::kNone;
  uint64_t ask_from_ = 0;
  bool nothing_yet_ = false;     // of the answer
  bool is_comparing_ = false;    // the answer begins before next_: is it the same life?
  bool is_passed_over_ = false;  // the rest of the answer
  TimePoint asked_at_{}, heard_at_{};
  TimePoint not_before_{};                    // the next question, so that gaps do not make a storm of them
  TimePoint silent_until_{};                  // nobody has answered lately: none is asked
  std::optional<TimePoint> last_message_at_;  // since then nobody has asked whether more was sent

  std::optional<int64_t> group_;  // of the hybrid cache's groups the one that counts
  int64_t other_block_size_ = 0;
};

}  // namespace sluice::gateway
