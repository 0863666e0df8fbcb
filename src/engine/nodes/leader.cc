#include "engine/nodes/leader.h"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "engine/nodes/join_point.h"
#include "engine/nodes/link.h"
#include "parallel/progress.h"

namespace sluice::engine {
namespace {

using nlohmann::json;

constexpr std::string_view kComponent = "engine/nodes";
constexpr Duration kFirstWord = std::chrono::seconds(5);  // from a connection to its join
constexpr Duration kReminder = std::chrono::seconds(10);  // between lines that say for whom we wait

struct Event {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  Event() { SLUICE_CHECK(fd >= 0, "eventfd: {}", std::strerror(errno)); }
  ~Event() { ::close(fd); }
  void set() const { ::eventfd_write(fd, 1); }
  void clear() const {
    eventfd_t count;
    ::eventfd_read(fd, &count);
  }
};

// A rank of another node: what the leader's thread knows of it, and what its handle asks.
struct RemoteRank {
  const std::string place;
  const Event ended = {};
  std::mutex mutex = {};  // guards what follows
  std::optional<ExitStatus> status = {};
  std::string cause = {};
  bool stopped = false;
  std::string seen = {};

  explicit RemoteRank(std::string where) : place(std::move(where)) {}

  void end(ExitStatus how, std::string why) {
    {
      const std::lock_guard lock(mutex);
      if (status) return;
      status = how;
      cause = std::move(why);
    }
    ended.set();
  }
};

// Of one start of a rank.
using Start = std::pair<int64_t, uint64_t>;  // process, incarnation

}  // namespace

class NodeLeader::Impl {
 public:
  Impl(const EngineOptions& options, NodeIdentity own, Endpoint at, net::Listening listening, std::string address)
      : own_(std::move(own)), at_(std::move(at)), listening_(std::move(listening)), address_(std::move(address)) {
    for (int64_t node = 1; node < options.nnodes; ++node) nodes_.emplace_back();
    thread_ = std::thread([this] {
      ::pthread_setname_np(::pthread_self(), "node-leader");
      run();
    });
  }

  ~Impl() {
    stopping_ = true;
    wake_.set();
    thread_.join();
    const std::lock_guard lock(mutex_);
    for (Node& node : nodes_) {
      if (node.link) (void)node.link->send({{"op", "end"}});
    }
  }

  const std::string& address() const { return address_; }

  std::string absent() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> names;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!nodes_[i].link) names.push_back(fmt::format("node {}", i + 1));
    }
    return fmt::format("{}", fmt::join(names, ", "));
  }

  Result<void> wait_for_all(Duration bound, int stop_descriptor) const {
    const TimePoint end = real_clock().now() + bound;
    for (TimePoint remind{};;) {
      const std::string missing = absent();
      if (missing.empty()) return {};
      const TimePoint now = real_clock().now();
      if (now >= end) {
        return Error{ErrorCode::kTimeout,
                     fmt::format("waited {:.0f} s for {} at {}", seconds(bound), missing, to_string(at_))};
      }
      if (now >= remind) {
        SLUICE_LOG(info, kComponent, "waiting for {} at {}", missing, to_string(at_));
        remind = now + kReminder;
      }
      changed_.clear();
      pollfd entries[2] = {{changed_.fd, POLLIN, 0}, {stop_descriptor, POLLIN, 0}};
      ::poll(entries, 2, 1000);
      if (entries[1].revents != 0) return Error{ErrorCode::kCancelled, "stopped while other nodes were awaited"};
    }
  }

  Result<std::unique_ptr<RankHandle>> start_rank(int64_t number, const RankSpec& spec);

  void signal(int64_t number, const Start& start, int signal_number) {
    const std::lock_guard lock(mutex_);
    Node& node = at(number);
    if (!node.link) return;
    const auto sent = node.link->send(
        {{"op", "signal"}, {"rank", start.first}, {"incarnation", start.second}, {"signal", signal_number}});
    if (!sent.ok()) lose(number, sent.error().message);
  }

 private:
  struct Node {
    std::optional<NodeLink> link;  // absent: the node is not there
    std::string host_name;
    TimePoint heard{};                                   // later by what was lost since
    std::map<Start, std::shared_ptr<RemoteRank>> ranks;  // that have not ended
  };
  // A connection that has not said who it is.
  struct Stranger {
    NodeLink link;
    TimePoint due;
  };

  Node& at(int64_t number) { return nodes_[static_cast<size_t>(number - 1)]; }
  int64_t number_of(const Node& node) const { return &node - nodes_.data() + 1; }

  // ---- the leader's thread

  void run() {
    std::vector<pollfd> entries;
    while (!stopping_) {
      entries.assign(1, {wake_.fd, POLLIN, 0});
      for (const auto& socket : listening_.sockets[0]) entries.push_back({socket.get(), POLLIN, 0});
      bool connected = !strangers_.empty();
      for (const Stranger& stranger : strangers_) entries.push_back({stranger.link.fd(), POLLIN, 0});
      {
        const std::lock_guard lock(mutex_);
        for (const Node& node : nodes_) {
          if (!node.link) continue;
          entries.push_back({node.link->fd(), POLLIN, 0});
          connected = true;
        }
      }
      const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(kSignOfLifeEvery).count();
      ::poll(entries.data(), entries.size(), connected ? static_cast<int>(wait) : -1);
      wake_.clear();
      accept_all();
      hear_strangers();
      hear_nodes();
    }
  }

  void accept_all() {
    for (const auto& listening : listening_.sockets[0]) {
      for (;;) {
        net::Socket socket(::accept4(listening.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (socket.get() < 0) break;
        strangers_.push_back({NodeLink(std::move(socket)), real_clock().now() + kFirstWord});
      }
    }
  }

  void hear_strangers() {
    for (auto stranger = strangers_.begin(); stranger != strangers_.end();) {
      auto message = stranger->link.receive();
      if (message.ok() && !*message && real_clock().now() < stranger->due) {
        ++stranger;
        continue;
      }
      if (message.ok() && *message) {
        take_in(std::move(stranger->link), **message);
      } else {
        SLUICE_LOG_EVERY(5, warn, kComponent, "{} came to {} and did not join: {}", stranger->link.peer_address(),
                         to_string(at_), message.ok() ? "it said nothing" : message.error().message);
      }
      stranger = strangers_.erase(stranger);
    }
  }

  void take_in(NodeLink link, const json& message) {
    const auto identity = node_identity_from_json(message);
    const auto refuse = [&](const std::string& why, bool for_now) {
      SLUICE_LOG(error, kComponent, "a node at {} is refused: {}", link.peer_address(), why);
      (void)link.send({{"op", "refused"}, {"why", why}, {"for_now", for_now}});
    };
    if (message["op"] == "check") return refuse("a server runs here, check-cluster must run on all nodes", true);
    if (message["op"] != "join" || !identity.ok()) return refuse("it is no node of this program", false);
    const int64_t number = identity->node;
    const int64_t last = static_cast<int64_t>(nodes_.size());
    const auto different = differences(own_, *identity);
    if (!different.empty()) return refuse(fmt::format("{}", fmt::join(different, "; ")), false);
    if (number < 1 || number > last) {
      return refuse(fmt::format("--node-rank {} must be from 1 to {} beside node 0", number, last), false);
    }
    const std::lock_guard lock(mutex_);
    Node& node = at(number);
    if (node.link) {
      return refuse(
          fmt::format("node {} has joined already, from {} at {}", number, node.host_name, node.link->peer_address()),
          true);
    }
    if (!link.send({{"op", "joined"}}).ok()) return;
    node.link.emplace(std::move(link));
    node.host_name = identity->host_name;
    node.heard = real_clock().now();
    SLUICE_LOG(info, kComponent, "node {} has joined: {} at {}", number, node.host_name, node.link->peer_address());
    changed_.set();
  }

  void hear_nodes() {
    const std::lock_guard lock(mutex_);
    const Duration lost = lost_.look(kSignOfLifeEvery);
    const TimePoint now = real_clock().now();
    const bool tell = now - told_ >= kSignOfLifeEvery;
    if (tell) told_ = now;
    for (Node& node : nodes_) {
      node.heard = std::min(now, node.heard + lost);
      while (node.link) {
        auto message = node.link->receive();
        if (!message.ok()) {
          lose(number_of(node), message.error().message);
        } else if (*message) {
          node.heard = now;
          take(node, **message);
        } else {
          break;
        }
      }
      if (!node.link) continue;
      if (now - node.heard > kNodeSilenceLimit) {
        lose(number_of(node), fmt::format("it has said nothing for {:.0f} s", seconds(now - node.heard)));
      } else if (tell) {
        if (const auto sent = node.link->send({{"op", "alive"}}); !sent.ok())
          lose(number_of(node), sent.error().message);
      }
    }
  }

  void take(Node& node, const json& message) {
    try {
      if (message["op"] == "alive") {
        for (const json& rank : message.at("ranks")) take_word_of_rank(node, rank);
      } else if (message["op"] == "state" || message["op"] == "ended") {
        take_word_of_rank(node, message);
      }
    } catch (const json::exception& e) {
      lose(number_of(node), fmt::format("what it says is none of this program's: {}", e.what()));
    }
  }

  void take_word_of_rank(Node& node, const json& word) {
    const auto found = node.ranks.find({word.at("rank").get<int64_t>(), word.at("incarnation").get<uint64_t>()});
    if (found == node.ranks.end()) return;
    RemoteRank& rank = *found->second;
    {
      const std::lock_guard lock(rank.mutex);
      if (const auto stopped = word.find("stopped"); stopped != word.end()) rank.stopped = stopped->get<bool>();
      if (const auto seen = word.find("seen"); seen != word.end() && *seen != rank.seen) {
        rank.seen = seen->get<std::string>();
        SLUICE_LOG(debug, kComponent, "node {}: rank {} is at {}", number_of(node), found->first.first, rank.seen);
      }
    }
    if (!word.contains("op") || word["op"] != "ended") return;
    rank.end({.code = word.at("code").get<int>(), .signal = word.at("signal").get<int>()},
             word.at("cause").get<std::string>());
    node.ranks.erase(found);
  }

  // With mutex_ held. Its ranks end with it: the agent, where it still is, sees to that.
  void lose(int64_t number, const std::string& why) {
    Node& node = at(number);
    const std::string lost =
        fmt::format("node {} ({} at {}) is lost: {}", number, node.host_name, node.link->peer_address(), why);
    SLUICE_LOG(error, kComponent, "{}", lost);
    node.link.reset();
    for (auto& [start, rank] : std::exchange(node.ranks, {})) rank->end({.signal = SIGKILL}, lost);
  }

  const NodeIdentity own_;
  const Endpoint at_;
  const net::Listening listening_;
  const std::string address_;
  const Event wake_;
  const Event changed_;
  std::atomic<bool> stopping_{false};

  mutable std::mutex mutex_;  // guards the next; a rank's is taken under it
  std::vector<Node> nodes_;   // 1, 2, ...

  // Of the thread.
  std::list<Stranger> strangers_;
  TimePoint told_{};
  parallel::LostTime lost_;

  std::thread thread_;

  class Handle;
};

class NodeLeader::Impl::Handle final : public RankHandle {
 public:
  Handle(Impl& leader, int64_t node, Start start, std::shared_ptr<RemoteRank> rank)
      : leader_(leader), node_(node), start_(start), rank_(std::move(rank)) {}
  ~Handle() override { signal(SIGKILL); }

  pid_t pid() const override { return 0; }
  std::optional<ProcessSigns> signs() const override {
    const std::lock_guard lock(rank_->mutex);
    if (rank_->status) return std::nullopt;
    return ProcessSigns{.state = rank_->stopped ? ProcessSigns::State::kStopped : ProcessSigns::State::kWaiting};
  }
  int descriptor() const override { return rank_->ended.fd; }
  std::optional<ExitStatus> poll() override {
    const std::lock_guard lock(rank_->mutex);
    return rank_->status;
  }
  std::optional<ExitStatus> wait(Duration bound) override {
    pollfd entry{descriptor(), POLLIN, 0};
    ::poll(&entry, 1, static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(bound).count()));
    return poll();
  }
  void signal(int number) override {
    if (!poll()) leader_.signal(node_, start_, number);
  }
  std::string cause() const override {
    const std::lock_guard lock(rank_->mutex);
    return rank_->cause;
  }
  std::string place() const override { return rank_->place; }
  std::string last_seen() const override {
    const std::lock_guard lock(rank_->mutex);
    return rank_->seen;
  }

 private:
  Impl& leader_;
  const int64_t node_;
  const Start start_;
  const std::shared_ptr<RemoteRank> rank_;
};

Result<std::unique_ptr<RankHandle>> NodeLeader::Impl::start_rank(int64_t number, const RankSpec& spec) {
  const std::lock_guard lock(mutex_);
  Node& node = at(number);
  if (!node.link) return Error{ErrorCode::kUnavailable, fmt::format("node {} is not there", number)};
  const Start start{spec.process, spec.incarnation};
  auto rank = std::make_shared<RemoteRank>(
      fmt::format(", on node {} ({} at {})", number, node.host_name, node.link->peer_address()));
  node.ranks[start] = rank;
  const auto sent = node.link->send({{"op", "start"}, {"spec", rank_spec_to_json(spec)}});
  if (!sent.ok()) {
    lose(number, sent.error().message);
    return sent.error();
  }
  return std::unique_ptr<RankHandle>(std::make_unique<Handle>(*this, number, start, std::move(rank)));
}

Result<std::unique_ptr<NodeLeader>> NodeLeader::listen(const EngineOptions& options, NodeIdentity own) {
  SLUICE_TRY(auto point, open_join_point(options));
  return std::unique_ptr<NodeLeader>(new NodeLeader(std::make_unique<Impl>(
      options, std::move(own), std::move(point.at), std::move(point.listening), std::move(point.rank_address))));
}

NodeLeader::NodeLeader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NodeLeader::~NodeLeader() = default;
const std::string& NodeLeader::address() const { return impl_->address(); }
Result<void> NodeLeader::wait_for_all(Duration bound, int stop_descriptor) const {
  return impl_->wait_for_all(bound, stop_descriptor);
}
std::string NodeLeader::absent() const { return impl_->absent(); }
Result<std::unique_ptr<RankHandle>> NodeLeader::start_rank(int64_t node, const RankSpec& spec) {
  return impl_->start_rank(node, spec);
}

}  // namespace sluice::engine
