// Listens to the publishers of KV events: one thread with a ZeroMQ SUB socket for each worker, and a DEALER socket to
// ask for what was lost. It begins with the first subscription, and waits while nothing comes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "gateway/kv_events/stream.h"
#include "gateway/kv_events/view.h"

namespace sluice::gateway {

struct KvEndpoint {
  std::string events;  // tcp://host:port, ipc://path
  std::string replay;  // the same; empty = none
  std::string topic;
  KvPublisher publisher;
};

struct KvStreamStatus {
  KvKnowledge knowledge = KvKnowledge::kNothing;
  std::string why;  // it is not kAll
  int64_t block_size = 0;
  int64_t other_block_size = 0;
  uint64_t next_sequence = 0;
  size_t blocks = 0;
  KvStreamCounts counts;
};

class KvSubscriber {
 public:
  // Both outlive this.
  KvSubscriber(KvView& view, const Clock& clock);
  ~KvSubscriber();

  // Any thread; they return at once. Of a worker the latest one counts.
  void subscribe(KvEndpoint endpoint);
  void unsubscribe(uint32_t worker);
  // Any thread; none while there is no subscription.
  std::optional<KvStreamStatus> status(uint32_t worker) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::gateway
