// Which workers are believed to hold the KV cache of which prefix: one compressed radix tree over the bytes of the
// routing text. A node knows the set of workers that hold it. Reads take no lock and never wait; writes are queued to
// one index thread; memory is a hard budget in bytes that includes the allocator's overhead, held by evicting leaves
// that were not used for long a few at a time.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace sluice::routing {

// A worker's claim on a prefix: the worker, and which life of it. A restart or flush begins a new generation, and
// claims of older ones count for nothing from then on.
struct Holder {
  uint32_t worker = 0;
  uint32_t generation = 0;
};

// A node of the tree that a text was found to go through: all texts that go through the same one begin with the same
// bytes. A value; what has become of the node since does not matter.
struct PrefixPlace {
  uint32_t node = 0;  // 0: nowhere
  uint32_t born = 0;  // which of the nodes that have stood there, one after the other
  size_t bytes = 0;   // from the beginning of the text to the end of the node

  bool is(const PrefixPlace& other) const { return node != 0 && node == other.node && born == other.born; }
};

// The result of a look-up; a value, valid for as long as one likes.
struct PrefixMatch {
  static constexpr size_t kMaxHolders = 64;
  static constexpr size_t kMaxParts = 16;

  size_t matched_bytes = 0;  // cut to whole UTF-8 characters
  size_t total_bytes = 0;
  // Of the text that full workers dropped lately, the part that more than one insert had come through, and so will be
  // asked for again: 0 to 1, 0 while nothing is dropped.
  float shared_drops = 0;
  uint8_t num_holders = 0;  // who holds these bytes; at most kMaxHolders, those that used them last, in any order
  // Who holds less, and how much; at most kMaxParts, most bytes first. Nobody of the tree where there are kMaxHolders.
  uint8_t num_parts = 0;
  std::array<uint32_t, kMaxHolders> holders;
  struct Part {
    uint32_t worker;
    uint32_t bytes;  // > 0
  };
  std::array<Part, kMaxParts> parts;
  // The last node of some size that the text goes through to its end; of all of the text, whatever leave_out() says.
  PrefixPlace place;
  uint64_t seen = 0;    // the number of the last claim that was looked at
  size_t left_out = 0;  // bytes, by leave_out()

  std::span<const uint32_t> workers() const { return {holders.data(), num_holders}; }
  std::span<const Part> partly() const { return {parts.data(), num_parts}; }
  // Of the text, as held by that worker.
  double rate_of(uint32_t worker) const {
    // To the end, though one may come early: that compares several at once.
    uint32_t found = 0;
    for (const uint32_t holder : workers()) found |= holder == worker ? 1 : 0;
    if (found != 0) return rate();
    const auto part = std::ranges::find(partly(), worker, &Part::worker);
    return part == partly().end() ? 0 : static_cast<double>(part->bytes) / static_cast<double>(total_bytes);
  }
  double rate() const {
    return total_bytes == 0 ? 0 : static_cast<double>(matched_bytes) / static_cast<double>(total_bytes);
  }
  // The worker holds so many bytes, of which it was not known or less: into its place. A new deepest one moves the
  // others to partly(). Where there is no room those that hold least go.
  void add(uint32_t worker, size_t bytes);
  // The first `bytes` of the text, at most all of it, do not count.
  void leave_out(size_t bytes);
};

// What the caller knows of a text that it inserts. It saves work, and changes nothing of what comes of it.
struct KnownText {
  // Whose bytes the text is, if they do not change any more: a long one is then kept, and not copied, until it is
  // applied.
  std::shared_ptr<const std::string> owner = {};
  // Where match() has found that text.
  PrefixPlace place = {};
};

struct PrefixIndexOptions {
  size_t budget_bytes = 256 << 20;  // at least 64 KiB; of the tree itself at most 32 GiB are used
  // Bytes of prefix text per worker (--max-tree-size), held at every insert.
  size_t max_bytes_per_worker = size_t{1} << 26;
  // How often claims of dropped workers, and those that are too old, are swept out in the background
  // (--eviction-interval-secs). Both bounds above hold at every insert and never wait for it.
  Duration sweep_interval = std::chrono::seconds(60);
  // A claim says what the worker held when it last got the text. Nothing tells what it has dropped since: after so long
  // without use the claim goes, in the next of those rounds. Zero: never.
  Duration max_age = Duration::zero();
  const Clock* clock = &real_clock();  // of ages; outlives the index
};

struct PrefixIndexStats {
  size_t bytes = 0;  // accounted, allocator overhead included
  size_t nodes = 0;
  uint64_t inserts = 0;
  uint64_t dropped_inserts = 0;  // and withdrawals, for want of room
  uint64_t withdrawn_inserts = 0;
  uint64_t evictions_budget = 0;  // nodes that went because the whole index was full
  uint64_t evictions_size = 0;    // claims that went because their worker's share was full
  uint64_t evictions_worker = 0;  // claims that went because their worker was dropped
  uint64_t evictions_age = 0;     // claims that went because they were not used for long
};

// What the index holds, at one moment.
struct PrefixIndexReport {
  struct Prefix {
    size_t bytes = 0;   // of its text
    uint64_t hash = 0;  // text_hash()
    uint32_t inserts = 0;
    size_t continuations = 0;       // different next bytes
    std::vector<uint32_t> holders;  // the first few
    size_t num_holders = 0;
  };
  std::vector<std::pair<uint32_t, size_t>> worker_bytes;  // of text, of each worker that holds any
  // The longest of those that nearly the same inserts came through; most inserts first.
  std::vector<Prefix> prefixes;
};

class PrefixIndex {
 public:
  explicit PrefixIndex(PrefixIndexOptions options);
  ~PrefixIndex();
  PrefixIndex(const PrefixIndex&) = delete;
  PrefixIndex& operator=(const PrefixIndex&) = delete;

  // Any thread, no wait, no allocation. A claim counts from insert() on: those that wait to be applied are looked at
  // too, the latest few.
  PrefixMatch match(std::string_view text) const;
  // Any thread; copies the text, or keeps its owner, and returns at once. The claim belongs to the worker's life at the
  // time of the call. A text is cut to what the queue has room for, a 32nd of the budget and at most 16 MiB, and to a
  // quarter of the worker's share; when the queue is full the claim is dropped and counted. `limit`: bytes of text that
  // the worker can hold, where more is known than max_bytes_per_worker. Returns the number of the claim, 0 of a dropped
  // one.
  uint64_t insert(std::string_view text, uint32_t worker, size_t limit = SIZE_MAX, const KnownText& known = {});
  // As insert(), for a worker that was chosen by what match() has found of all the text. None, and nothing is claimed,
  // where a choice has come between the two that may change this one, or what it is believed to cost: a claim that has
  // an eighth of the text more than was found, or so many claims that nobody knows. Of choices that are made at the
  // same moment for the same new text one is the first then, and the others can follow it.
  std::optional<uint64_t> insert_if_latest(std::string_view text, uint32_t worker, const PrefixMatch& found,
                                           size_t limit = SIZE_MAX, const KnownText& known = {});
  // What insert() has claimed did not come to be held: the request was refused, say. What the worker had before stays,
  // and so does what its other texts go on from; of equal texts that were claimed meanwhile nothing stays, and the next
  // request brings it back. Of different texts that begin alike and are all withdrawn nothing stays either, unless
  // hundreds of others are withdrawn in between; not even what was claimed and answered between two of them and is
  // exactly what they share, which the next answer brings back. Nothing comes of it where the worker has been dropped
  // or thousands of claims came in between; nor where the queue is full, which is counted. Any thread; takes effect
  // within some milliseconds.
  void withdraw(std::string_view text, uint32_t worker, uint64_t claim);
  // All claims of the worker are void from now on: it restarted, was flushed or was removed. Any thread; readers see it
  // at once, memory is freed as it is met.
  void drop_worker(uint32_t worker);
  // Frees what drop_worker() voided and what is too old, now. Any thread but a reader's inner loop; waits for the index
  // thread.
  void sweep();
  // Waits until everything queued before the call is applied. For tests and for shutdown.
  void flush();

  PrefixIndexStats stats() const;
  // `done` gets the report on the index thread, soon, and does next to nothing there; with the index it may go unused.
  // Looks at some hundred nodes for each prefix, `most` of them at most. Any thread; returns at once.
  void report(size_t most, std::function<void(PrefixIndexReport)> done);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::routing
