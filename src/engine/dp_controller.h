// The DataParallelController: starts the ranks, sends requests to them and their output back, sees a rank die, reports
// it and starts it again while the others serve on; likewise one that hangs. Where an instance of the model is divided
// among several ranks, these are started and end together. One thread owns the sockets and the processes; it sleeps
// until a frame, a request, the end of a process or a time comes.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "engine/backend.h"
#include "engine/load_balance/method.h"
#include "engine/load_board.h"
#include "engine/rank.h"
#include "engine/rank_handle.h"

namespace sluice::engine {

struct DataParallelControllerOptions {
  const LoadBalanceRow* method = nullptr;
  int64_t tp_size = 1;  // ranks of an instance
  // Replicas of the model; 0: one for each row of the board. Each has equally many rows of the board, and equally many
  // of its ranks compute the requests of a row.
  int64_t instances = 0;
  // Starts the process of a rank. Of the spec, the numbers of the rank and the endpoints are filled in, and the model
  // where ControlKind::kLoadWeights has changed it. `group_fd` is that of the instance's ShmSegment, -1 where the rank
  // is all of it or where there are several hosts. Called on the controller's thread.
  std::function<Result<std::unique_ptr<RankHandle>>(RankSpec, int group_fd)> start_rank;
  // Hosts of the one instance: each has equally many of the ranks, in their order, the first ones on this. Where there
  // are several, ranks meet at `address`, of this host, and `absent` says which hosts a start has to wait for; empty:
  // none. Any thread.
  int64_t hosts = 1;
  std::string address;
  std::function<std::string()> absent;
  // How long a rank may take from its start to its RankReady. The largest models take minutes to read and pack.
  Duration startup_timeout = std::chrono::minutes(30);
  RestartBackoff::Options backoff = {};
  // A rank that is an instance by itself, has something to do and makes no progress for so long is killed, and starts
  // anew (rank_watch.h). Of several, one whose process is stopped while the instance starts.
  Duration silence_limit = std::chrono::seconds(4);
  // How long a rank may take to end by itself at the end of the server.
  Duration stop_grace = std::chrono::seconds(2);
};

class DataParallelController final : public Backend {
 public:
  // Start-up news of a rank, on the controller's thread.
  using OnProgress = std::function<void(int64_t rank, double share, std::string_view what)>;

  // Returns when all of them are ready. An error, as soon as one has failed, names the
  // rank and the cause; kCancelled once `stop_descriptor` (-1: none) is readable. No rank is left then. `board` and
  // `clock` outlive the controller.
  static Result<std::unique_ptr<DataParallelController>> start(DataParallelControllerOptions options, LoadBoard& board,
                                                               const Clock& clock, OnProgress on_progress,
                                                               int stop_descriptor);
  // Ends what is in flight with 503, then the ranks.
  ~DataParallelController() override;

  Result<int64_t> submit(GenerateRequest request, std::optional<int64_t> pinned_rank, OnOutput on_output) override;
  void abort(const std::string& rid) override;
  void abort_all() override;
  std::vector<std::string> running() const override;
  void control(ControlKind kind, std::string text, Duration at_most, OnControl done) override;
  std::vector<RankState> ranks() const override;

 private:
  class Impl;
  explicit DataParallelController(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::engine
