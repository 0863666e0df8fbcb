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
#include <functional>
#include <future>
#include <set>
#include <thread>

#include "base/log.h"
#include "engine/control_rounds.h"
#include "engine/dispatcher.h"
#include "engine/front_link.h"
#include "engine/nodes/link.h"
#include "engine/rank_loop.h"
#include "engine/rank_watch.h"
#include "parallel/rendezvous.h"
#include "parallel/shm_segment.h"
#include "parallel/step_member.h"

namespace sluice::engine {
namespace {

constexpr std::string_view kComponent = "engine/dp_controller";
// A rank's last frame says why it ended, and may be on its way still when its end is seen.
constexpr Duration kLastFrameWait = std::chrono::milliseconds(100);
constexpr Duration kHostWait = std::chrono::seconds(1);  // between looks whether a host is back
// Between two looks at what the ranks are doing, while they have something to do.
constexpr Duration kLookEvery = std::chrono::milliseconds(500);
// What the threads of a rank that hangs get to leave their stacks.
constexpr Duration kStackWait = std::chrono::milliseconds(300);

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

}  // namespace

class DataParallelController::Impl {
 public:
  Impl(DataParallelControllerOptions options, LoadBoard& board, const Clock& clock, OnProgress on_progress)
      : options_(std::move(options)),
        board_(board),
        clock_(clock),
        on_progress_(std::move(on_progress)),
        dispatcher_(*options_.method, board, clock),
        states_(static_cast<size_t>(board.size())) {
    const int64_t instances = options_.instances == 0 ? board.size() : options_.instances;
    ranks_.resize(static_cast<size_t>(instances * options_.tp_size));
    ranks_per_row_ = ranks_.size() / states_.size();
    for (int64_t i = 0; i < instances; ++i) instances_.emplace_back(options_.backoff, clock_);
  }

  ~Impl() {
    stopping_ = true;
    wake_.set();
    if (thread_.joinable()) thread_.join();
  }

  // ---- any thread

  Result<void> launch(int stop_descriptor) {
    SLUICE_TRY(link_, FrontLink::create(static_cast<int64_t>(ranks_.size()), options_.address));
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

  void control(ControlKind kind, std::string text, Duration at_most, OnControl done) {
    {
      std::lock_guard lock(mutex_);
      controls_asked_.push_back({{.kind = kind, .text = std::move(text)}, at_most, std::move(done)});
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
    std::unique_ptr<RankHandle> process;  // null: it has none
    bool ready = false;
    std::string failure;   // why it ends, in its own words or in ours
    std::string progress;  // its last news while it starts
    RankWatch watch;
    std::optional<TimePoint> kill_at;  // it hangs
  };
  // The ranks that hold the model together: they start and end together.
  struct Instance {
    Instance(RestartBackoff::Options options, const Clock& clock) : backoff(options, clock) {}

    RestartBackoff backoff;
    uint64_t incarnation = 0;
    std::string model_file;                                  // that it was started with; empty: the server's
    std::shared_ptr<parallel::ShmSegment> segment;           // null: one rank, or several hosts
    std::unique_ptr<parallel::RendezvousServer> rendezvous;  // of several hosts
    bool ready = false;
    bool ending = false;  // one of its ranks has ended
    parallel::WorkNumbers work;
    TimePoint restart_at{};
    // While starting: when it must be ready. Without processes: when to start it.
    std::optional<TimePoint> due;
  };

  struct Asked {
    ControlRequest request;
    Duration at_most;
    OnControl done;
  };

  // ---- who is who: a row of the board is an attention group, of ranks that follow each other in one instance

  size_t tp() const { return static_cast<size_t>(options_.tp_size); }
  Instance& instance_of(size_t rank) { return instances_[rank / tp()]; }
  const Instance& instance_of_row(int64_t row) const { return instances_[leader_of(row) / tp()]; }
  size_t leader_of(int64_t row) const { return static_cast<size_t>(row) * ranks_per_row_; }
  int64_t row_of(size_t rank) const { return static_cast<int64_t>(rank / ranks_per_row_); }
  bool leads(size_t rank) const { return rank % ranks_per_row_ == 0; }
  bool elsewhere(size_t rank) const { return rank >= ranks_.size() / static_cast<size_t>(options_.hosts); }
  std::span<Rank> ranks_of(size_t instance) { return std::span(ranks_).subspan(instance * tp(), tp()); }
  std::vector<int64_t> rows_of(size_t instance) const {
    std::vector<int64_t> rows;
    for (size_t rank = instance * tp(); rank < (instance + 1) * tp(); rank += ranks_per_row_)
      rows.push_back(row_of(rank));
    return rows;
  }

  // ---- the controller's thread

  void run() {
    pthread_setname_np(pthread_self(), "dp-controller");
    for (size_t i = 0; i < instances_.size() && launching_; ++i) start(i);
    while (!stopping_ && !launch_failed_) {
      link_->wait(watched(), time_left());
      wake_.clear();
      take_frames();
      for (size_t i = 0; i < ranks_.size(); ++i) {
        if (watched_[i + 1].readable) look_at(i);
      }
      for (size_t i = 0; i < instances_.size(); ++i) check_time(i);
      watch_ranks();
      begin_controls();
      controls_.expire();
      send_outgoing();
    }
    end();
  }

  std::span<FrontLink::Watched> watched() {
    watched_.clear();
    watched_.push_back({.fd = wake_.fd()});
    // poll(2) skips a negative descriptor; zmq_poll takes it for a socket, so a rank without a process gets the
    // event's.
    for (const Rank& rank : ranks_) watched_.push_back({.fd = rank.process ? rank.process->descriptor() : wake_.fd()});
    return watched_;
  }

  std::optional<Duration> time_left() const {
    std::optional<TimePoint> first;
    const auto consider = [&](TimePoint due) {
      if (!first || due < *first) first = due;
    };
    for (const Instance& instance : instances_) {
      if (instance.due) consider(*instance.due);
    }
    if (const auto due = controls_.due()) consider(*due);
    for (const Rank& rank : ranks_) {
      if (rank.kill_at) consider(*rank.kill_at);
    }
    if (next_look_) consider(*next_look_);
    if (!first) return std::nullopt;
    return *first - clock_.now();
  }

  void send_outgoing() {
    for (auto& [row, incarnation, message] : dispatcher_.take_outgoing()) {
      // What was meant for a process that has ended was dealt with when it ended.
      const Instance& to = instance_of_row(row);
      if (to.ready && to.incarnation == incarnation) send(row, message);
    }
    wake_instances();
  }

  void send(int64_t row, const ToRank& message) {
    const size_t leader = leader_of(row);
    link_->send(static_cast<int64_t>(leader), message);
    instance_of(leader).work.sent();
    if (tp() == 1) look_soon();
  }

  // Ranks that step together must all know that there is something to do.
  void wake_instances() {
    for (size_t i = 0; i < instances_.size() && tp() > 1; ++i) {
      const auto number = instances_[i].work.tell(instances_[i].ready);
      if (!number) continue;
      for (size_t rank = i * tp(); rank < (i + 1) * tp(); ++rank) {
        link_->send(static_cast<int64_t>(rank), WakeRequest{.work = *number});
      }
    }
  }

  static void deliver(std::vector<Dispatcher::Delivery> deliveries) {
    for (auto& delivery : deliveries) (*delivery.to)(std::move(delivery.output));
  }

  // ---- frames

  void take_frames() {
    while (auto frame = link_->receive()) {
      const auto rank = static_cast<size_t>(frame->process);
      // Late words of a process that has ended.
      if (frame->incarnation != instance_of(rank).incarnation) continue;
      std::visit([&](auto& message) { take(rank, message); }, frame->message);
    }
  }

  void take(size_t rank, OutputBatch& batch) {
    deliver(dispatcher_.outputs(row_of(rank), instance_of(rank).incarnation, std::move(batch)));
  }

  void take(size_t i, RankProgress& progress) {
    Rank& rank = ranks_[i];
    rank.progress = fmt::format("{}, {:.0f} %", progress.what, progress.share * 100);
    if (launching_ && on_progress_) on_progress_(static_cast<int64_t>(i), progress.share, progress.what);
  }

  void take(size_t i, RankReady& info) {
    Rank& rank = ranks_[i];
    if (rank.ready || !rank.process) return;
    rank.ready = true;
    if (leads(i)) {
      std::lock_guard lock(mutex_);
      states_[static_cast<size_t>(row_of(i))].info = std::move(info);
    }
    if (launching_ && on_progress_) on_progress_(static_cast<int64_t>(i), 1.0, "ready");
    const size_t number = i / tp();
    if (std::ranges::all_of(ranks_of(number), &Rank::ready)) instance_ready(number);
  }

  void instance_ready(size_t number) {
    Instance& instance = instances_[number];
    if (instance.model_file != controls_.model_file()) {
      for (Rank& rank : ranks_of(number)) {
        rank.failure = "other weights were loaded while it started";
        if (rank.process) rank.process->signal(SIGKILL);
      }
      return;
    }
    instance.ready = true;
    instance.due.reset();
    for (const int64_t row : rows_of(number)) {
      if (controls_.paused()) send(row, ControlRequest{.kind = ControlKind::kPauseRetract});
      dispatcher_.rank_ready(row, instance.incarnation);
      std::lock_guard lock(mutex_);
      states_[static_cast<size_t>(row)].ready = true;
    }
    if (!launching_) {
      SLUICE_LOG(info, kComponent, "{} again", serves(number));
    } else if (std::ranges::all_of(instances_, &Instance::ready)) {
      launch_is_over({});
    }
  }

  // "rank 3 serves", "ranks 4 to 7 serve".
  std::string serves(size_t number) const {
    return fmt::format("{} {}", names(number), tp() == 1 ? "serves" : "serve");
  }
  std::string names(size_t number) const {
    if (tp() == 1) return fmt::format("rank {}", number);
    return fmt::format("ranks {} to {}", number * tp(), (number + 1) * tp() - 1);
  }

  // The process ends itself after this, or is made to.
  void take(size_t i, RankFailed& failed) {
    Rank& rank = ranks_[i];
    rank.failure = failed.cause;
    if (rank.process) rank.process->signal(SIGKILL);
  }

  void take(size_t i, ControlReply& reply) {
    const auto kind = controls_.asked(i, reply.id);
    if (!kind) return;
    // Other weights make other caches.
    if (reply.ok && (*kind == ControlKind::kFlushCache || *kind == ControlKind::kLoadWeights)) {
      dispatcher_.rank_flushed(row_of(i));
    }
    controls_.take(i, std::move(reply));
  }

  void take(size_t i, LoadReport& report) {
    if (leads(i)) board_.publish(row_of(i), report.load);
  }

  void take(size_t i, moe::RankTokens& tokens) {
    if (!leads(i)) return;
    std::lock_guard lock(mutex_);
    moe::RankTokens& sums = states_[static_cast<size_t>(row_of(i))].expert_tokens;
    if (sums.tokens.size() != tokens.tokens.size()) {
      sums = std::move(tokens);
    } else {
      std::ranges::transform(sums.tokens, tokens.tokens, sums.tokens.begin(), std::plus());
    }
  }

  // ---- processes

  void start(size_t number) {
    Instance& instance = instances_[number];
    instance.incarnation += 1;
    instance.model_file = controls_.model_file();
    instance.ending = false;
    instance.backoff.started();
    instance.due = clock_.now() + options_.startup_timeout;
    if (options_.hosts > 1) {
      auto rendezvous =
          parallel::RendezvousServer::serve(to_string(Endpoint{.host = options_.address}), static_cast<int>(tp()));
      if (!rendezvous.ok()) return lost(number * tp(), rendezvous.error().message);
      instance.rendezvous = std::move(*rendezvous);
    } else if (tp() > 1) {
      auto segment = parallel::ShmSegment::create(static_cast<int>(tp()));
      if (!segment.ok()) return lost(number * tp(), segment.error().message);
      instance.segment = std::move(*segment);
    }
    for (size_t i = number * tp(); i < (number + 1) * tp(); ++i) {
      Rank& rank = ranks_[i];
      rank.failure.clear();
      rank.progress.clear();
      rank.watch.rest();
      if (tp() == 1) board_.pulse(row_of(i)).set({});
      auto process = start_process(i);
      if (!process.ok()) return lost(i, process.error().message);
      rank.process = std::move(*process);
      look_soon();
      if (!leads(i)) continue;
      std::lock_guard lock(mutex_);
      RankState& state = states_[static_cast<size_t>(row_of(i))];
      state.pid = rank.process->pid();
      state.restarts = static_cast<int64_t>(instance.incarnation) - 1;
    }
  }

  Result<std::unique_ptr<RankHandle>> start_process(size_t i) {
    const auto process = static_cast<int64_t>(i);
    const Instance& instance = instance_of(i);
    RankSpec spec{.process = process,
                  .dp_rank = row_of(i),
                  .tp_rank = static_cast<int64_t>(i % tp()),
                  .incarnation = instance.incarnation,
                  .model_file = instance.model_file};
    SLUICE_TRY(spec.input_endpoint, link_->open_input(process, spec.incarnation, elsewhere(i)));
    spec.output_endpoint = link_->output_endpoint(elsewhere(i));
    if (instance.rendezvous) spec.rendezvous = instance.rendezvous->endpoint();
    return options_.start_rank(std::move(spec), instance.segment ? instance.segment->fd() : -1);
  }

  // The process's descriptor is readable.
  void look_at(size_t i) {
    Rank& rank = ranks_[i];
    const auto status = rank.process ? rank.process->poll() : std::nullopt;
    if (!status) return;
    take_last_frames(rank, status->code != 0);
    const std::string cause = rank.failure.empty() ? rank.process->cause() : rank.failure;
    lost(i, cause + rank.process->place(), last_seen(i));
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

  // The rank has no process any more. `seen`: where it was, for the log.
  void lost(size_t i, const std::string& cause, const std::string& seen = "") {
    Rank& rank = ranks_[i];
    const size_t number = i / tp();
    Instance& instance = instances_[number];
    link_->close_input(static_cast<int64_t>(i));
    rank.process.reset();
    rank.ready = false;
    rank.kill_at.reset();
    if (launching_) {
      launch_is_over(Error{ErrorCode::kUnavailable, fmt::format("rank {} failed to start: {}", i, cause)});
      return;
    }
    if (!std::exchange(instance.ending, true)) return end_instance(number, i, cause, seen);
    restart_if_gone(number);
  }

  // It starts again when the last of its processes has ended.
  void restart_if_gone(size_t number) {
    const auto gone = [](const Rank& rank) { return !rank.process; };
    if (std::ranges::all_of(ranks_of(number), gone)) instances_[number].due = instances_[number].restart_at;
  }

  // Where a rank of several was.
  std::string last_seen(size_t i) {
    const auto& segment = instance_of(i).segment;
    return segment ? parallel::to_string(segment->signs()[i % tp()].where()) : ranks_[i].process->last_seen();
  }

  // Rank `i` of the instance has ended: what was in flight goes to others or ends, and its other ranks end too.
  void end_instance(size_t number, size_t i, const std::string& cause, const std::string& seen) {
    Instance& instance = instances_[number];
    instance.ready = false;
    instance.due.reset();
    const Duration delay = instance.backoff.ended();
    instance.restart_at = clock_.now() + delay;
    restart_if_gone(number);
    if (instance.segment) instance.segment->abort(fmt::format("rank {} has ended: {}", i % tp(), cause));
    for (Rank& other : ranks_of(number)) {
      if (other.process) other.process->signal(SIGKILL);
    }
    const std::vector<int64_t> rows = rows_of(number);
    for (const int64_t row : rows) {
      std::lock_guard lock(mutex_);
      states_[static_cast<size_t>(row)].ready = false;
      states_[static_cast<size_t>(row)].pid = 0;
    }
    auto [moved, ended] = dispatcher_.ranks_lost(rows, cause);
    SLUICE_LOG(error, kComponent,
               "rank {} has ended ({}{}); {} requests went to other ranks, {} ended; {} again in {:.1f} s", i, cause,
               seen.empty() ? "" : "; last seen at " + seen, moved, ended.size(),
               tp() == 1 ? "it starts" : names(number) + " start", seconds(delay));
    deliver(std::move(ended));
    std::set<size_t> gone;
    for (size_t rank = number * tp(); rank < (number + 1) * tp(); ++rank) gone.insert(rank);
    controls_.drop(gone);
  }

  void check_time(size_t number) {
    Instance& instance = instances_[number];
    if (!instance.due || clock_.now() < *instance.due) return;
    instance.due.reset();
    const std::span<Rank> ranks = ranks_of(number);
    if (std::ranges::none_of(ranks, [](const Rank& rank) { return rank.process != nullptr; })) {
      const std::string absent = options_.absent ? options_.absent() : "";
      if (absent.empty()) return start(number);
      SLUICE_LOG_EVERY(30, warn, kComponent, "{} wait for {} before they start again", names(number), absent);
      instance.due = clock_.now() + kHostWait;
      return;
    }
    for (Rank& rank : ranks) {
      if (rank.ready || !rank.process) continue;
      rank.failure = fmt::format("not ready within {:.0f} s (last news: {})", seconds(options_.startup_timeout),
                                 rank.progress.empty() ? "none" : rank.progress);
      rank.process->signal(SIGKILL);
    }
  }

  // ---- ranks that hang

  // Ranks that step together watch each other, but for one that is stopped before it has met the others.
  bool is_watched(size_t rank) { return tp() == 1 || !instance_of(rank).ready; }
  const Pulse& pulse_of(size_t rank) const { return tp() == 1 ? board_.pulse(row_of(rank)) : loading_; }
  void look_soon() {
    if (!next_look_) next_look_ = clock_.now() + kLookEvery;
  }

  void watch_ranks() {
    const TimePoint now = clock_.now();
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i].kill_at && now >= *ranks_[i].kill_at) end_hung(i);
    }
    if (!next_look_ || now < *next_look_) return;
    next_look_.reset();
    const std::vector<size_t> in_flight = dispatcher_.in_flight();
    for (size_t i = 0; i < ranks_.size(); ++i) {
      Rank& rank = ranks_[i];
      if (!rank.process || !rank.failure.empty() || !is_watched(i)) continue;  // it is ending already
      if (rank.ready && tp() == 1 && in_flight[i] == 0 && !controls_.waits_for(i)) {
        rank.watch.rest();
        continue;
      }
      look_soon();
      const auto signs = rank.process->signs();
      if (!signs) continue;  // its end is on its way
      const auto hang = rank.watch.look(now, pulse_of(i), *signs, options_.silence_limit);
      if (hang) found_hung(i, *hang);
    }
  }

  void found_hung(size_t i, const std::string& what) {
    const LoadSnapshot load = dispatcher_.word(row_of(i));
    ranks_[i].failure = what;
    SLUICE_LOG(error, kComponent, "rank {} hangs: {}; {} requests run there, {} wait", i, what, load.num_running_reqs,
               load.num_waiting_reqs);
    ranks_[i].kill_at = clock_.now();
    if (tp() > 1) return;  // leaves none
    ask_for_stacks(ranks_[i].process->pid(), board_.stacks(row_of(i)));
    *ranks_[i].kill_at += kStackWait;
  }

  void end_hung(size_t i) {
    Rank& rank = ranks_[i];
    rank.kill_at.reset();
    if (!rank.process) return;
    if (tp() == 1) {
      for (const std::string& line : left_stacks(rank.process->pid(), board_.stacks(row_of(i)))) {
        SLUICE_LOG(error, kComponent, "rank {}, {}", i, line);
      }
    }
    rank.process->signal(SIGKILL);
  }

  void launch_is_over(Result<void> result) {
    if (!std::exchange(launching_, false)) return;
    launch_failed_ = !result.ok();
    launched_.set_value(std::move(result));
    launch_over_.set();
  }

  // ---- controls

  void begin_controls() {
    std::vector<Asked> asked;
    {
      std::lock_guard lock(mutex_);
      asked.swap(controls_asked_);
    }
    for (auto& [request, at_most, done] : asked) {
      std::set<size_t> ranks;
      for (size_t i = 0; i < ranks_.size(); ++i) {
        // One that starts begins with an empty cache, and is told what else holds.
        if (instance_of(i).ready && (leads(i) || concerns_followers(request.kind))) ranks.insert(i);
      }
      controls_.begin(request, ranks, at_most, std::move(done));
      // Requests that were accepted before come before it on the wire as well.
      send_outgoing();
      for (const size_t i : ranks) {
        if (leads(i)) {
          send(row_of(i), request);
        } else {
          link_->send(static_cast<int64_t>(i), request);
        }
      }
    }
  }

  // ---- end

  void end() {
    const std::string cause = "the server is shutting down";
    deliver(dispatcher_.end_all(cause));
    begin_controls();
    controls_.cancel_all(cause);
    std::vector<RankHandle*> left;
    // A failed launch is reported now: nothing is in flight.
    const TimePoint end = real_clock().now() + (launch_failed_ ? Duration{0} : options_.stop_grace);
    for (size_t i = 0; i < ranks_.size(); ++i) {
      if (!ranks_[i].process) continue;
      left.push_back(ranks_[i].process.get());
      // Ranks that step together would miss the first that ends, and say so.
      if (ranks_[i].ready && tp() == 1) {
        link_->send(static_cast<int64_t>(i), ControlRequest{.kind = ControlKind::kShutdown});
      } else {
        ranks_[i].process->signal(SIGTERM);
      }
    }
    for (RankHandle* process : left) process->wait(std::max(Duration{0}, end - real_clock().now()));
    for (Rank& rank : ranks_) rank.process.reset();
  }

  const DataParallelControllerOptions options_;
  LoadBoard& board_;
  const Clock& clock_;
  const OnProgress on_progress_;
  Dispatcher dispatcher_;
  Event wake_;
  Event launch_over_;
  std::promise<Result<void>> launched_;
  std::atomic<bool> stopping_{false};

  mutable std::mutex mutex_;       // guards these two; no other lock is taken under it
  std::vector<RankState> states_;  // [rows] without the loads
  std::vector<Asked> controls_asked_;

  // Of the controller's thread.
  std::unique_ptr<FrontLink> link_;
  std::vector<Rank> ranks_;  // of all instances
  size_t ranks_per_row_ = 1;
  std::vector<Instance> instances_;
  std::vector<FrontLink::Watched> watched_;
  ControlRounds controls_{clock_};
  std::optional<TimePoint> next_look_;  // while a rank that is watched has something to do
  const Pulse loading_{};               // of a rank of several, of which no more is seen than its process
  bool launching_ = true;
  bool launch_failed_ = false;

  std::thread thread_;
};

Result<std::unique_ptr<DataParallelController>> DataParallelController::start(DataParallelControllerOptions options,
                                                                              LoadBoard& board, const Clock& clock,
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
void DataParallelController::control(ControlKind kind, std::string text, Duration at_most, OnControl done) {
  impl_->control(kind, std::move(text), at_most, std::move(done));
}
std::vector<RankState> DataParallelController::ranks() const { return impl_->ranks(); }

}  // namespace sluice::engine
