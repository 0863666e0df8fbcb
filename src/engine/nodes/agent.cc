#include "engine/nodes/agent.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <map>
#include <vector>

#include "base/log.h"
#include "engine/certificates.h"
#include "engine/model_files.h"
#include "engine/nodes/identity.h"
#include "engine/nodes/interface.h"
#include "engine/nodes/link.h"
#include "engine/rank.h"
#include "engine/rank_handle.h"
#include "net/server.h"
#include "parallel/progress.h"
#include "protocol/errors.h"

namespace sluice::engine {
namespace {

using nlohmann::json;

constexpr std::string_view kComponent = "engine/nodes";
constexpr Duration kJoinLimit = std::chrono::minutes(10);
constexpr Duration kReminder = std::chrono::seconds(10);  // between lines that say for whom we wait
// Between looks whether a rank is stopped.
constexpr Duration kLookEvery = std::chrono::milliseconds(500);
// Of ranks whose node 0 has ended: they hold nothing that must be put away.
constexpr Duration kEndGrace = std::chrono::seconds(2);

bool readable_within(int descriptor, Duration bound) {
  pollfd entry{descriptor, POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(bound).count())) > 0;
}

}  // namespace

class NodeAgent::Impl {
 public:
  Impl(const EngineOptions& options, Endpoint leader, ModelFiles files,
       std::function<void(std::string_view)> on_rank_line, InterfaceSource interfaces)
      : options_(options),
        leader_(std::move(leader)),
        files_(std::move(files)),
        identity_(own_identity(options, files_.model)),
        on_rank_line_(std::move(on_rank_line)),
        interfaces_(std::move(interfaces)),
        loops_(1, "http") {}

  Result<void> listen() {
    SLUICE_TRY(auto certificate, load_certificate(options_));
    keep_certificate_fresh(certificate, loops_[0], "clients");
    server_ = std::make_unique<net::Server>(loops_, net::ServerOptions{.tls = std::move(certificate)},
                                            [this](net::ServerExchange& client) { return answer(client); });
    SLUICE_TRY(port_, server_->listen(options_.host, static_cast<uint16_t>(options_.port)));
    return {};
  }
  uint16_t port() const { return port_; }

  Result<void> run(int stop_descriptor) {
    for (;;) {
      SLUICE_TRY(auto link, join(stop_descriptor));
      if (!link) return {};
      joined_ = true;
      auto ended = work(*link, stop_descriptor);
      joined_ = false;
      end_ranks();
      if (ended.ok()) return {};
      SLUICE_LOG(error, kComponent, "node 0 is lost: {}; the ranks of this node have ended, it joins again when it can",
                 ended.error().message);
    }
  }

 private:
  // ---- health probes

  net::Task<> answer(net::ServerExchange& client) {
    const auto path = client.request().path();
    if (path != "/health" && path != "/health_generate") {
      const std::string why =
          fmt::format("this is node {} of an instance on {} hosts, and takes no requests: node 0 does",
                      options_.node_rank, options_.nnodes);
      (void)co_await client.respond(net::Response::json(404, protocol::error_body(404, why)));
      co_return;
    }
    const int status = joined_ ? 200 : 503;
    const json body = {{"status", joined_ ? "joined" : "waiting for node 0"}, {"node_rank", options_.node_rank}};
    (void)co_await client.respond(net::Response::json(status, body.dump()));
  }

  // ---- node 0

  // Nothing where it is to stop.
  Result<std::optional<NodeLink>> join(int stop_descriptor) const {
    const TimePoint end = real_clock().now() + kJoinLimit;
    for (TimePoint remind{};;) {
      auto joined = try_to_join();
      if (joined.ok()) {
        SLUICE_LOG(info, kComponent, "node {} has joined node 0 at {}, from {}; its ranks are at {}",
                   options_.node_rank, to_string(leader_), joined->link.local_address(), joined->rank_address);
        return std::optional(std::move(joined->link));
      }
      const Error& why = joined.error();
      if (why.code == ErrorCode::kBadOption) return why;
      const TimePoint now = real_clock().now();
      if (now >= end) {
        return Error{ErrorCode::kTimeout, fmt::format("tried for {:.0f} s to join node 0 at {}: {}",
                                                      seconds(kJoinLimit), to_string(leader_), why.message)};
      }
      if (now >= remind) {
        SLUICE_LOG(info, kComponent, "waiting for node 0 at {}: {}", to_string(leader_), why.message);
        remind = now + kReminder;
      }
      if (readable_within(stop_descriptor, kNodeRetryEvery)) return std::optional<NodeLink>();
    }
  }

  struct Joined {
    NodeLink link;
    std::string rank_address;
  };
  // kBadOption: it need not try again.
  Result<Joined> try_to_join() const {
    SLUICE_TRY(auto link, NodeLink::connect(leader_, kNodeConnectLimit));
    // An interface that was there at the start may come back, as node 0 may.
    SLUICE_TRY(auto address, rank_address(options_, link.local_address(), interfaces_));
    json hello = to_json(identity_);
    hello["op"] = "join";
    SLUICE_TRY_VOID(link.send(hello));
    SLUICE_TRY(const json answer, link.receive(kNodeSilenceLimit, "an answer"));
    if (answer["op"] == "joined") return Joined{std::move(link), std::move(address)};
    const auto why = answer.value("why", std::string("no node 0 of this program"));
    return Error{answer.value("for_now", false) ? ErrorCode::kAlreadyExists : ErrorCode::kBadOption,
                 fmt::format("node 0 at {} refuses this node: {}", to_string(leader_), why)};
  }

  // Does what node 0 says until it ends the instance or this agent is to stop; an error: node 0 is lost.
  Result<void> work(NodeLink& link, int stop_descriptor) {
    TimePoint heard = real_clock().now(), told = heard;  // heard: later by what was lost since
    parallel::LostTime lost;
    std::vector<pollfd> entries;
    for (;;) {
      entries.assign({{link.fd(), POLLIN, 0}, {stop_descriptor, POLLIN, 0}});
      for (const auto& [number, rank] : ranks_) entries.push_back({rank.process->descriptor(), POLLIN, 0});
      const Duration bound = ranks_.empty() ? kSignOfLifeEvery : kLookEvery;
      const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(bound).count();
      ::poll(entries.data(), entries.size(), static_cast<int>(wait));
      if (entries[1].revents != 0) return {};
      const Duration lost_now = lost.look(bound);
      const TimePoint now = real_clock().now();
      heard = std::min(now, heard + lost_now);
      for (;;) {
        SLUICE_TRY(const auto message, link.receive());
        if (!message) break;
        heard = now;
        if ((*message)["op"] == "end") {
          SLUICE_LOG(info, kComponent, "node 0 has ended the instance");
          return {};
        }
        SLUICE_TRY_VOID(obey(link, *message));
      }
      SLUICE_TRY_VOID(report_ended(link));
      SLUICE_TRY_VOID(report_stopped(link));
      if (now - heard > kNodeSilenceLimit) {
        return Error{ErrorCode::kTimeout, fmt::format("it has said nothing for {:.0f} s", seconds(now - heard))};
      }
      if (now - told < kSignOfLifeEvery) continue;
      told = now;
      SLUICE_TRY_VOID(link.send({{"op", "alive"}, {"ranks", places()}}));
    }
  }

  Result<void> obey(NodeLink& link, const json& message) {
    try {
      if (message["op"] == "start") return start(link, message.at("spec").get<std::string>());
      if (message["op"] != "signal") return {};
      const auto rank = ranks_.find(message.at("rank").get<int64_t>());
      if (rank == ranks_.end() || rank->second.incarnation != message.at("incarnation").get<uint64_t>()) return {};
      rank->second.process->signal(message.at("signal").get<int>());
      return {};
    } catch (const json::exception& e) {
      return Error{ErrorCode::kProtocol, e.what()};
    }
  }

  Result<void> start(NodeLink& link, const std::string& text) {
    SLUICE_TRY(auto spec, rank_spec_from_json(text));
    take_host_flags(spec.options, options_);
    if (spec.model_file.empty()) spec.model_file = files_.model;
    spec.tokenizer_file = files_.tokenizer;
    // The interface may have gone since this node joined.
    std::shared_ptr<parallel::ShmSegment> shown_in;
    auto process = [&]() -> Result<Process> {
      SLUICE_TRY(spec.address, rank_address(options_, link.local_address(), interfaces_));
      SLUICE_TRY(shown_in, parallel::ShmSegment::create(1));
      return start_rank(spec, {.group = shown_in->fd()}, on_rank_line_);
    }();
    if (!process.ok()) {
      return link.send({{"op", "ended"},
                        {"rank", spec.process},
                        {"incarnation", spec.incarnation},
                        {"code", 1},
                        {"signal", 0},
                        {"cause", process.error().message},
                        {"seen", ""}});
    }
    ranks_.insert_or_assign(spec.process, Rank{spec.incarnation, handle_of(std::move(*process), std::move(shown_in))});
    return {};
  }

  Result<void> report_ended(NodeLink& link) {
    for (auto rank = ranks_.begin(); rank != ranks_.end();) {
      const auto status = rank->second.process->poll();
      if (!status) {
        ++rank;
        continue;
      }
      const RankHandle& process = *rank->second.process;
      const json message = {{"op", "ended"},
                            {"rank", rank->first},
                            {"incarnation", rank->second.incarnation},
                            {"code", status->code},
                            {"signal", status->signal},
                            {"cause", process.cause()},
                            {"seen", process.last_seen()}};
      rank = ranks_.erase(rank);
      SLUICE_TRY_VOID(link.send(message));
    }
    return {};
  }

  // Of a rank of another host node 0 sees no more than this and places().
  Result<void> report_stopped(NodeLink& link) {
    for (auto& [number, rank] : ranks_) {
      const auto signs = rank.process->signs();
      const bool stopped = signs && signs->state == ProcessSigns::State::kStopped;
      if (std::exchange(rank.stopped, stopped) == stopped) continue;
      SLUICE_TRY_VOID(
          link.send({{"op", "state"}, {"rank", number}, {"incarnation", rank.incarnation}, {"stopped", stopped}}));
    }
    return {};
  }

  // Where the ranks are, for what node 0 says of them when this node is lost.
  json places() const {
    json all = json::array();
    for (const auto& [number, rank] : ranks_) {
      all.push_back({{"rank", number}, {"incarnation", rank.incarnation}, {"seen", rank.process->last_seen()}});
    }
    return all;
  }

  void end_ranks() {
    for (auto& [number, rank] : ranks_) rank.process->signal(SIGTERM);
    const TimePoint end = real_clock().now() + kEndGrace;
    for (auto& [number, rank] : ranks_) rank.process->wait(std::max(Duration{0}, end - real_clock().now()));
    ranks_.clear();
  }

  struct Rank {
    uint64_t incarnation = 0;
    std::unique_ptr<RankHandle> process;
    bool stopped = false;  // as node 0 was told
  };

  const EngineOptions options_;
  const Endpoint leader_;
  const ModelFiles files_;
  const NodeIdentity identity_;
  const std::function<void(std::string_view)> on_rank_line_;
  const InterfaceSource interfaces_;
  std::map<int64_t, Rank> ranks_;
  std::atomic<bool> joined_{false};
  uint16_t port_ = 0;
  net::LoopGroup loops_;
  std::unique_ptr<net::Server> server_;
};

Result<std::unique_ptr<NodeAgent>> NodeAgent::start(const EngineOptions& options,
                                                    std::function<void(std::string_view)> on_rank_line,
                                                    InterfaceSource interfaces) {
  SLUICE_TRY(auto leader, parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  SLUICE_TRY_VOID(check_interface(options, interfaces));
  SLUICE_TRY(auto files, find_model_files(options));
  std::unique_ptr<NodeAgent> agent(new NodeAgent(std::make_unique<Impl>(
      options, std::move(leader), std::move(files), std::move(on_rank_line), std::move(interfaces))));
  SLUICE_TRY_VOID(agent->impl_->listen());
  return agent;
}

NodeAgent::NodeAgent(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NodeAgent::~NodeAgent() = default;
uint16_t NodeAgent::port() const { return impl_->port(); }
Result<void> NodeAgent::run(int stop_descriptor) { return impl_->run(stop_descriptor); }

}  // namespace sluice::engine
