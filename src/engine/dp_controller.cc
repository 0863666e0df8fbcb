#include "engine/dp_controller.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <future>
#include <set>
#include <thread>

#include "base/log.h"
#include "engine/dispatcher.h"
#include "engine/front_link.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/dp_controller";
constexpr Duration kFlushTimeout = std::chrono::seconds(30);
// A rank's last frame says why it ended, and may be on its way still when its end is seen.
constexpr Duration kLastFrameWait = std::chrono::milliseconds(100);

// A counter that wakes a poll.
class Event {
 public:
  Event() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    SLUICE_CHECK(fd_ >= 0, "eventfd: {}", std::strerror(errno));
  }
  ~Event() { ::close(fd_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  int fd() const { return fd_; }
  void set() {
    const uint64_t one = 1;
    const ssize_t n = ::write(fd_, &one, sizeof one);
    SLUICE_CHECK(n == sizeof one || errno == EAGAIN, "eventfd: {}", std::strerror(errno));
  }
  void clear() {
    uint64_t count;
    const ssize_t n = ::read(fd_, &count, sizeof count);
    (void)n;  // it was not set
  }

 private:
  int fd_;
};

std::string last_line(const std::string& text) {
  const size_t end = text.find_last_not_of('\n');
  if (end == std::string::npos) return "";
  const size_t before = text.rfind('\n', end);
  const size_t begin = before == std::string::npos ? 0 : before + 1;
  return text.substr(begin, end - begin + 1);
}

}  // namespace

class DataParallelController::Impl {
 public:
  Impl(DataParallelControllerOptions options, const LoadBoard& board, const Clock& clock, OnProgress on_progress)
      : options_(std::move(options)),
        clock_(clock),
        on_progress_(std::move(on_progress)),
        dispatcher_(*options_.method, board, clock),
        states_(static_cast<size_t>(board.size())) {
    for (int64_t i = 0; i < board.size(); ++i) ranks_.emplace_back(options_.backoff, clock_);
  }

  ~Impl() {
    stopping_ = true;
    wake_.set();
    if (thread_.joinable()) thread_.join();
  }

  // ---- any thread

  Result<void> launch(int stop_descriptor) {
    SLUICE_TRY(link_, FrontLink::create(static_cast<int64_t>(ranks_.size())));
    auto launched = launched_.get_future();
    thread_ = std::thread([this] { run(); });
    pollfd entries[2] = {{launch_over_.fd(), POLLIN, 0}, {stop_descriptor, POLLIN, 0}};
    while (entries[0].revents == 0) {
      // Bounded by startup_timeout, which the thread keeps.
      if (::poll(entries, 2, -1) < 0 && errno != EINTR) {
        return Error{ErrorCode::kInternal, fmt::format("poll: {}", std::strerror(errno))};
      }
      if (entries[1].revents != 0) return Error{ErrorCode::kCancelled, "stopped while the ranks were starting"};
    }
    return launched.get();
  }

  Result<int64_t> submit(GenerateRequest request, std::optional<int64_t> pinned_rank, OnOutput on_output) {
    auto rank = dispatcher_.submit(std::move(request), pinned_rank, std::move(on_output));
    if (rank.ok()) wake_.set();
    return rank;
  }
  void abort(const std::string& rid) {
    dispatcher_.abort(rid);
    wake_.set();
  }
  void abort_all() {
    dispatcher_.abort_all();
    wake_.set();
  }
  std::vector<std::string> running() const { return dispatcher_.running(); }

  void flush_cache(std::function<void(Result<void>)> done) {
    {
      std::lock_guard lock(mutex_);
      flushes_asked_.push_back(std::move(done));
    }
    wake_.set();
  }

  std::vector<RankState> ranks() const {
    std::vector<RankState> states;
    {
      std::lock_guard lock(mutex_);
      states = states_;
    }
    for (size_t i = 0; i < states.size(); ++i) states[i].load = dispatcher_.word(static_cast<int64_t>(i));
    return states;
  }

 private:
  struct Rank {
    Rank(RestartBackoff::Options options, const Clock& clock) : backoff(options, clock) {}

    RestartBackoff backoff;
    uint64_t incarnation = 0;
    std::optional<Process> process;
    bool ready = false;
    std::string failure;   // why it ends, in its own words or in ours
    std::string progress;  // its last news while it starts
    // While starting: when it must be ready. Without a process: when to start it.
    std::optional<TimePoint> due;
  };

  struct Flush {
    uint64_t id = 0;
    std::set<int64_t> waiting_for;
    std::vector<std::string> refusals;
    TimePoint due;
    std::function<void(Result<void>)> done;
  };

  // ---- the controller's thread

  void run() {
    pthread_setname_np(pthread_self(), "dp-controller");
    for (size_t i = 0; i < ranks_.size() && launching_; ++i) start(i);
    while (!stopping_ && !launch_failed_) {
      link_->wait(watched(), time_left());
      wake_.clear();
      take_frames();
      for (size_t i = 0; i < ranks_.size(); ++i) {
        if (watched_[i + 1].readable) look_at(i);
        check_time(i);
      }
      begin_flushes();
      expire_flushes();
      send_outgoing();
    }
    end();
  }

  std::span<FrontLink::Watched> watched() {
    watched_.clear();
    watched_.push_back({.fd = wake_.fd()});
    // poll(2) skips a negative descriptor; zmq_poll takes it for a socket, so a rank without a process gets the
    // event's.
    for (const Rank& rank : ranks_) watched_.push_back({.fd = rank.process ? rank.process->pidfd() : wake_.fd()});
    return watched_;
  }

  std::optional<Duration> time_left() const {
    std::optional<TimePoint> first;
    const auto consider = [&](TimePoint due) {
      if (!first || due < *first) first = due;
    };
    for (const Rank& rank : ranks_) {
      if (rank.due) consider(*rank.due);
    }
    for (const Flush& flush : flushes_) consider(flush.due);
    if (!first) return std::nullopt;
    return *first - clock_.now();
  }

  void send_outgoing() {
    for (auto& [rank, incarnation, message] : dispatcher_.take_outgoing()) {
      // What was meant for a process that has ended was dealt with when it ended.
      const Rank& to = ranks_[static_cast<size_t>(rank)];
      if (to.ready && to.incarnation == incarnation) link_->send(rank, message);
    }
  }

  static void deliver(std::vector<Dispatcher::Delivery> deliveries) {
    for (auto& delivery : deliveries) (*delivery.to)(std::move(delivery.output));
  }

  // ---- frames

  void take_frames() {
    while (auto frame = link_->receive()) {
      // Late words of a process that has ended.
      if (frame->incarnation != ranks_[static_cast<size_t>(frame->dp_rank)].incarnation) continue;
      std::visit([&](auto& message) { take(frame->dp_rank, message); }, frame->message);
    }
  }

  void take(int64_t rank, OutputBatch& batch) {
    deliver(dispatcher_.outputs(rank, ranks_[static_cast<size_t>(rank)].incarnation, std::move(batch)));
  }

  void take(int64_t i, RankProgress& progress) {
    Rank& rank = ranks_[static_cast<size_t>(i)];
    rank.progress = fmt::format("{}, {:.0f} %", progress.what, progress.share * 100);
    if (launching_ && on_progress_) on_progress_(i, progress.share, progress.what);
  }

  void take(int64_t i, RankReady& info) {
    Rank& rank = ranks_[static_cast<size_t>(i)];
    if (rank.ready || !rank.process) return;
    rank.ready = true;
    rank.due.reset();
    dispatcher_.rank_ready(i, rank.incarnation);
    {
      std::lock_guard lock(mutex_);
      auto& state = states_[static_cast<size_t>(i)];
      state.ready = true;
      state.info = std::move(info);
    }
    if (!launching_) {
      SLUICE_LOG(info, kComponent, "rank {} serves again", i);
      return;
    }
    if (on_progress_) on_progress_(i, 1.0, "ready");
    if (std::ranges::all_of(ranks_, &Rank::ready)) launch_is_over({});
  }

  // The process ends itself after this, or is made to.
  void take(int64_t i, RankFailed& failed) {
    Rank& rank = ranks_[static_cast<size_t>(i)];
    rank.failure = failed.cause;
    if (rank.process) rank.process->signal(SIGKILL);
  }

  void take(int64_t i, ControlReply& reply) {
    const auto flush = std::ranges::find(flushes_, reply.id, &Flush::id);
    if (flush == flushes_.end() || flush->waiting_for.erase(i) == 0) return;
    if (!reply.ok) flush->refusals.push_back(fmt::format("rank {}: {}", i, reply.message));
    finish_if_answered(flush);
  }

  // ---- processes

  void start(size_t i) {
    Rank& rank = ranks_[i];
    rank.incarnation += 1;
    rank.failure.clear();
    rank.progress.clear();
    rank.backoff.started();
    rank.due = clock_.now() + options_.startup_timeout;
    auto process = start_process(i);
    if (!process.ok()) return lost(i, process.error().message);
    rank.process.emplace(std::move(*process));
    std::lock_guard lock(mutex_);
    states_[i].pid = rank.process->pid();
    states_[i].restarts = static_cast<int64_t>(rank.incarnation) - 1;
  }

  Result<Process> start_process(size_t i) {
    const auto dp_rank = static_cast<int64_t>(i);
    RankSpec spec{.dp_rank = dp_rank, .incarnation = ranks_[i].incarnation};
    SLUICE_TRY(spec.input_endpoint, link_->open_input(dp_rank, spec.incarnation));
    spec.output_endpoint = link_->output_endpoint();
    return options_.start_rank(std::move(spec));
  }

  // The process's descriptor is readable.
  void look_at(size_t i) {
    Rank& rank = ranks_[i];
    const auto status = rank.process ? rank.process->poll() : std::nullopt;
    if (!status) return;
    take_last_frames(rank, status->code != 0);
    std::string cause = rank.failure;
    if (cause.empty()) {
      cause = status->to_string();
      // What it wrote last is the cause where it ended itself, a broken invariant (SIGABRT) included; a kill has
      // nothing to do with it.
      const bool by_itself = status->signal == 0 || status->signal == SIGABRT;
      const std::string line = by_itself ? last_line(rank.process->stderr_tail()) : "";
      if (!line.empty()) cause += ": " + line;
    }
    lost(i, cause);
  }

  void take_last_frames(const Rank& rank, bool failure_expected) {
    const TimePoint end = real_clock().now() + kLastFrameWait;
    take_frames();
    while (failure_expected && rank.failure.empty()) {
      const Duration left = end - real_clock().now();
      if (left <= Duration{0}) return;
      link_->wait({}, left);
      take_frames();
    }
  }

  // The rank has no process any more.
  void lost(size_t i, const std::string& cause) {
    Rank& rank = ranks_[i];
    const auto dp_rank = static_cast<int64_t>(i);
    link_->close_input(dp_rank);
    rank.process.reset();
    rank.ready = false;
    {
      std::lock_guard lock(mutex_);
      states_[i].ready = false;
      states_[i].pid = 0;
    }
    if (launching_) {
      launch_is_over(Error{ErrorCode::kUnavailable, fmt::format("rank {} failed to start: {}", i, cause)});
      return;
    }
    const Duration delay = rank.backoff.ended();
    rank.due = clock_.now() + delay;
    auto [moved, ended] = dispatcher_.rank_lost(dp_rank, cause);
    SLUICE_LOG(error, kComponent,
               "rank {} has ended ({}); {} requests went to other ranks, {} ended; it starts again in {:.1f} s", i,
               cause, moved, ended.size(), seconds(delay));
    deliver(std::move(ended));
    // Its cache is gone with it.
    for (auto flush = flushes_.begin(); flush != flushes_.end();) {
      flush->waiting_for.erase(dp_rank);
      flush = finish_if_answered(flush);
    }
  }

  void check_time(size_t i) {
    Rank& rank = ranks_[i];
    if (!rank.due || clock_.now() < *rank.due) return;
    rank.due.reset();
    if (!rank.process) return start(i);
    rank.failure = fmt::format("not ready within {:.0f} s (last news: {})", seconds(options_.startup_timeout),
                               rank.progress.empty() ? "none" : rank.progress);
    rank.process->signal(SIGKILL);
  }

  void launch_is_over(Result<void> result) {
    if (!std::exchange(launching_, false)) return;
    launch_failed_ = !result.ok();
    launched_.set_value(std::move(result));
    launch_over_.set();
  }

  // ---- flushes

  void begin_flushes() {
    std::vector<std::function<void(Result<void>)>> asked;
    {
      std::lock_guard lock(mutex_);
      asked.swap(flushes_asked_);
    }
    for (auto& done : asked) {
      Flush flush{.id = ++last_flush_, .due = clock_.now() + kFlushTimeout, .done = std::move(done)};
      // Requests that were accepted before come before it on the wire as well.
      send_outgoing();
      for (size_t i = 0; i < ranks_.size(); ++i) {
        if (!ranks_[i].ready) continue;  // it will begin with an empty cache
        flush.waiting_for.insert(static_cast<int64_t>(i));
        link_->send(static_cast<int64_t>(i), ControlRequest{.id = flush.id, .kind = ControlKind::kFlushCache});
      }
      flushes_.push_back(std::move(flush));
      finish_if_answered(std::prev(flushes_.end()));
    }
  }

  std::vector<Flush>::iterator finish_if_answered(std::vector<Flush>::iterator flush) {
    if (!flush->waiting_for.empty()) return std::next(flush);
    Result<void> result;
    if (!flush->refusals.empty()) {
      result = Error{ErrorCode::kUnavailable, fmt::format("{}", fmt::join(flush->refusals, "; "))};
    }
    return finish(flush, std::move(result));
  }

  void expire_flushes() {
    for (auto flush = flushes_.begin(); flush != flushes_.end();) {
      if (clock_.now() < flush->due) {
        ++flush;
        continue;
      }
      flush = finish(
          flush, Error{ErrorCode::kTimeout, fmt::format("no answer within {:.0f} s from rank {}",
                                                        seconds(kFlushTimeout), fmt::join(flush->waiting_for, ", "))});
    }
  }

  std::vector<Flush>::iterator finish(std::vector<Flush>::iterator flush, Result<void> result) {
    const auto done = std::move(flush->done);
    const auto next = flushes_.erase(flush);
    done(std::move(result));
    return next;
  }

  // ---- end

  void end() {
    const std::string cause = "the server is shutting down";
    deliver(dispatcher_.end_all(cause));
    begin_flushes();
    while (!flushes_.empty()) finish(flushes_.begin(), Error{ErrorCode::kCancelled, cause});
    std::vector<Process*> left;
    // A failed launch is reported now: nothing is in flight.
    const TimePoint end = real_clock().now() + (launch_failed_ ? Duration{0} : options_.stop_grace);
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (!ranks_[i].process) continue;
      left.push_back(&*ranks_[i].process);
      if (ranks_[i].ready) {
        link_->send(static_cast<int64_t>(i), ControlRequest{.kind = ControlKind::kShutdown});
      } else {
        ranks_[i].process->signal(SIGTERM);
      }
    }
    for (Process* process : left) process->wait(std::max(Duration{0}, end - real_clock().now()));
    terminate_all(left, Duration{0});
  }

  const DataParallelControllerOptions options_;
  const Clock& clock_;
  const OnProgress on_progress_;
  Dispatcher dispatcher_;
  Event wake_;
  Event launch_over_;
  std::promise<Result<void>> launched_;
  std::atomic<bool> stopping_{false};

  mutable std::mutex mutex_;       // guards these two; no other lock is taken under it
  std::vector<RankState> states_;  // [ranks] without the loads
  std::vector<std::function<void(Result<void>)>> flushes_asked_;

  // Of the controller's thread.
  std::unique_ptr<FrontLink> link_;
  std::vector<Rank> ranks_;
  std::vector<FrontLink::Watched> watched_;
  std::vector<Flush> flushes_;
  uint64_t last_flush_ = 0;
  bool launching_ = true;
  bool launch_failed_ = false;

  std::thread thread_;
};

Result<std::unique_ptr<DataParallelController>> DataParallelController::start(DataParallelControllerOptions options,
                                                                              const LoadBoard& board,
                                                                              const Clock& clock,
                                                                              OnProgress on_progress,
                                                                              int stop_descriptor) {
  auto impl = std::make_unique<Impl>(std::move(options), board, clock, std::move(on_progress));
  SLUICE_TRY_VOID(impl->launch(stop_descriptor));
  return std::unique_ptr<DataParallelController>(new DataParallelController(std::move(impl)));
}

DataParallelController::DataParallelController(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DataParallelController::~DataParallelController() = default;

Result<int64_t> DataParallelController::submit(GenerateRequest request, std::optional<int64_t> pinned_rank,
                                               OnOutput on_output) {
  return impl_->submit(std::move(request), pinned_rank, std::move(on_output));
}
void DataParallelController::abort(const std::string& rid) { impl_->abort(rid); }
void DataParallelController::abort_all() { impl_->abort_all(); }
std::vector<std::string> DataParallelController::running() const { return impl_->running(); }
void DataParallelController::flush_cache(std::function<void(Result<void>)> done) {
  impl_->flush_cache(std::move(done));
}
std::vector<RankState> DataParallelController::ranks() const { return impl_->ranks(); }

}  // namespace sluice::engine
