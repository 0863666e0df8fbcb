// What the dispatcher believes of the ranks' prefix caches: what was sent to each, corrected by what its answers say
// they found there (src/routing/, as in the gateway). Prompts are token ids here, which need no tokenizer to be exact.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/load_balance/method.h"
#include "engine/messages.h"
#include "routing/cache_belief.h"
#include "routing/prefix_index.h"

namespace sluice::engine {

// Under its owner's lock.
class PrefixBelief {
 public:
  explicit PrefixBelief(int64_t ranks);

  // Sets `prompt` and `cached` of each rank's load for this request.
  void expect(const GenerateRequest& request, std::span<RankLoad> loads) const;
  struct Sent {
    int64_t cached = 0;  // prompt tokens that it is believed to find
    uint64_t claim = 0;  // of the index
  };
  // The request goes to `rank`.
  Sent dispatched(int64_t rank, const GenerateRequest& request);
  // It had no step there.
  void refused(int64_t rank, const GenerateRequest& request, const Sent& sent);
  // Its first output says what it found.
  void answered(int64_t rank, int64_t expected, const RequestOutput& output);
  // The rank's pool, as its load says.
  void capacity(int64_t rank, int64_t tokens);
  // The rank's cache is empty: it ended, or was flushed.
  void forget(int64_t rank);

 private:
  int64_t cached_on(int64_t rank, const routing::PrefixMatch& match, size_t head) const;

  std::unique_ptr<routing::PrefixIndex> index_;
  std::vector<std::unique_ptr<routing::CacheBelief>> beliefs_;  // [ranks]
};

}  // namespace sluice::engine
