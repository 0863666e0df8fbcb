// The working half of a rank process: its link to the front, and the loop that takes messages in, steps the scheduler
// and sends answers out. Idle, it sleeps in poll until
// something comes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/result.h"
#include "engine/grammar/desk.h"
#include "engine/group_runner.h"
#include "engine/kv_publisher.h"
#include "engine/load_board.h"
#include "engine/messages.h"
#include "engine/prefill_delayer.h"
#include "engine/scheduler.h"

namespace sluice::engine {

// Used by one thread.
class RankLink {
 public:
  // Neither end waits for the other: what is sent before the front reads is queued.
  static Result<RankLink> connect(const std::string& input_endpoint, const std::string& output_endpoint,
                                  int64_t process, uint64_t incarnation);
  RankLink(RankLink&&) noexcept;
  // Waits at most a second for what was sent to reach the front.
  ~RankLink();

  void send(FromRank message);
  // The next message, waiting for it at most `wait`, or until `other_fd` (-1: none) is readable. Without a limit the
  // wait ends with the process at the latest, which ends when the front does. A frame that does not decode is logged
  // and dropped.
  std::optional<ToRank> receive(std::optional<Duration> wait, int other_fd = -1);

 private:
  struct Sockets;
  explicit RankLink(std::unique_ptr<Sockets> sockets);

  std::unique_ptr<Sockets> sockets_;
};

// Weights, experts and how long steps take are each rank's; all other control messages are the business of those that
// plan.
constexpr bool concerns_followers(ControlKind kind) {
  return kind == ControlKind::kLoadWeights || kind == ControlKind::kRecordExperts ||
         kind == ControlKind::kStartProfile || kind == ControlKind::kStopProfile;
}

// What ControlKind::kRecordExperts says is done; what there is to say to the front.
using RecordExperts = std::function<Result<std::string>(std::string_view command)>;

struct RankLoopOptions {
  int64_t dp_rank = 0;
  int64_t process = 0;  // the rank's number among all of the server
  int64_t decode_log_interval = 40;
  // The scheduler's runner, for a rank that steps together with others; it goes along with their steps then.
  GroupRunner* group = nullptr;
  // The scheduler's runner, where this thread computes its steps and no other rank takes part in them: one that nobody
  // waits for any more is ended between two of its layers.
  models::Runner* ends_early = nullptr;
  PrefillDelayerOptions prefill_delayer = {};  // of such a rank
  // ControlKind::kLoadWeights; absent: refused.
  std::function<Result<void>(const std::string& model_path)> load_weights = {};
  // ControlKind::kRecordExperts; absent: refused.
  RecordExperts record_experts = {};
  // ControlKind::kReadWeight; absent: refused.
  std::function<Result<std::string>(std::string_view query)> read_weight = {};
  GrammarDesk* grammars = nullptr;  // outlives the loop; null: no request has a grammar
};

// Until ControlKind::kShutdown. An error is the model's: this rank cannot go on. Without a `board` the front gets a
// LoadReport instead. `events`, if given, hears of the prefix cache after each step.
Result<void> run_rank_loop(const RankLoopOptions& options, RankLink& link, Scheduler& scheduler, LoadBoard* board,
                           KvPublisher* events = nullptr);
// Likewise, of a rank that computes what the leader of its attention group plans. `process` as in RankLoopOptions.
Result<void> run_follower_loop(RankLink& link, GroupRunner& group, int64_t process,
                               const std::function<Result<void>(const std::string& model_path)>& load_weights,
                               const RecordExperts& record_experts);

}  // namespace sluice::engine
