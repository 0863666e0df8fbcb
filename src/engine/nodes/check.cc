#include "engine/nodes/check.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/log.h"
#include "engine/model_files.h"
#include "engine/nodes/interface.h"
#include "engine/nodes/join_point.h"
#include "engine/nodes/link.h"

namespace sluice::engine {
namespace {

using nlohmann::json;

constexpr std::string_view kComponent = "engine/nodes";
constexpr int kBacklog = 1024;  // nobody accepts: the system answers

NodeIdentity identity_of(const EngineOptions& options) {
  const auto files = find_model_files(options);
  NodeIdentity identity = own_identity(options, files.ok() ? files->model : "");
  if (!files.ok()) identity.model = fmt::format("not there ({})", files.error().message);
  return identity;
}

// A port of this address at which connections of others succeed.
Result<net::Listening> probe_port(const std::string& address) { return net::listen_sockets(address, 0, 1, kBacklog); }

CheckedPath try_path(int64_t to, const Endpoint& at) {
  const TimePoint begin = real_clock().now();
  const auto link = NodeLink::connect(at, kNodeConnectLimit);
  if (!link.ok()) return {.to = to, .took = {}, .problem = link.error().message};
  return {.to = to, .took = real_clock().now() - begin, .problem = {}};
}

json to_json(const std::vector<CheckedPath>& paths) {
  json list = json::array();
  for (const CheckedPath& path : paths) {
    list.push_back({{"to", path.to}, {"nanos", path.took ? path.took->count() : -1}, {"problem", path.problem}});
  }
  return list;
}

std::vector<CheckedPath> paths_from_json(const json& list) {
  std::vector<CheckedPath> paths;
  for (const json& one : list) {
    CheckedPath path{.to = one.at("to").get<int64_t>(), .took = {}, .problem = one.at("problem").get<std::string>()};
    if (const auto nanos = one.at("nanos").get<int64_t>(); nanos >= 0) path.took = Duration(nanos);
    paths.push_back(std::move(path));
  }
  return paths;
}

struct Peer {
  int64_t node = 0;
  Endpoint at;
};

std::vector<CheckedPath> try_paths(int64_t own, const std::vector<Peer>& peers) {
  std::vector<CheckedPath> paths;
  for (const Peer& peer : peers) {
    if (peer.node != own) paths.push_back(try_path(peer.node, peer.at));
  }
  return paths;
}

// Node 0's part.
class Collector {
 public:
  Collector(const EngineOptions& options, Duration bound)
      : options_(options), bound_(bound), nodes_(static_cast<size_t>(options.nnodes)) {
    for (size_t i = 0; i < nodes_.size(); ++i) nodes_[i].node = static_cast<int64_t>(i);
  }

  Result<ClusterCheck> run(int stop_descriptor) {
    SLUICE_TRY(const JoinPoint point, open_join_point(options_));
    CheckedNode& own = nodes_[0];
    own.seen = true;
    own.address = point.rank_address;
    own.interface = chosen_interface(options_).value_or("");
    own.identity = identity_of(options_);
    SLUICE_TRY(const auto probe, probe_port(own.address));
    peers_.push_back({0, {own.address, probe.port}});
    SLUICE_LOG(info, kComponent, "node 0 listens at {}, and waits {:.0f} s for {} others",
               to_string(Endpoint{point.reached, point.at.port}), seconds(bound_), nodes_.size() - 1);
    SLUICE_TRY_VOID(collect(point.listening, stop_descriptor));
    exchange();
    ClusterCheck check = judge_cluster(nodes_, bound_);
    for (auto& [node, link] : links_)
      (void)link.send({{"op", "result"}, {"table", check.table}, {"passed", check.passed}});
    return check;
  }

 private:
  Result<void> collect(const net::Listening& listening, int stop_descriptor) {
    const TimePoint end = real_clock().now() + bound_;
    while (links_.size() + 1 < nodes_.size()) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - real_clock().now()).count();
      if (left <= 0) return {};
      std::vector<pollfd> entries{{stop_descriptor, POLLIN, 0}};
      for (const auto& socket : listening.sockets[0]) entries.push_back({socket.get(), POLLIN, 0});
      for (const auto& [node, link] : links_) entries.push_back({link.fd(), POLLIN, 0});
      ::poll(entries.data(), entries.size(), static_cast<int>(left));
      if (entries[0].revents != 0) return Error{ErrorCode::kCancelled, "stopped while other nodes were awaited"};
      drop_those_that_left();
      for (const auto& socket : listening.sockets[0]) {
        net::Socket come(::accept4(socket.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (come.get() >= 0) take_in(NodeLink(std::move(come)));
      }
    }
    return {};
  }

  // It may be started again, with another flag.
  void drop_those_that_left() {
    for (auto at = links_.begin(); at != links_.end();) {
      const auto said = at->second.receive();
      if (said.ok() && !*said) {  // as a node that waits to be asked
        ++at;
        continue;
      }
      const int64_t node = at->first;
      SLUICE_LOG(warn, kComponent, "node {} has left", node);
      std::erase_if(peers_, [&](const Peer& peer) { return peer.node == node; });
      nodes_[static_cast<size_t>(node)] = {.node = node};
      at = links_.erase(at);
    }
  }

  void take_in(NodeLink link) {
    const auto hello = link.receive(kNodeSilenceLimit, "its first word");
    if (!hello.ok()) {
      SLUICE_LOG(warn, kComponent, "{} came and is no node: {}", link.peer_address(), hello.error().message);
      return;
    }
    auto identity = node_identity_from_json(*hello);
    std::string refusal;
    if ((*hello)["op"] != "check" || !identity.ok()) {
      refusal = "`sluice check-cluster` runs on node 0, not a server";
    } else if (identity->node < 1 || identity->node >= options_.nnodes) {
      refusal = fmt::format("--node-rank {} must be from 1 to {} beside node 0", identity->node, options_.nnodes - 1);
    } else if (links_.contains(identity->node)) {
      refusal =
          fmt::format("{} at {} is node {} already", nodes_[static_cast<size_t>(identity->node)].identity.host_name,
                      nodes_[static_cast<size_t>(identity->node)].address, identity->node);
    }
    if (!refusal.empty()) {
      SLUICE_LOG(warn, kComponent, "a node at {} is refused: {}", link.peer_address(), refusal);
      (void)link.send({{"op", "refused"}, {"why", refusal}, {"for_now", true}});
      return;
    }
    CheckedNode& node = nodes_[static_cast<size_t>(identity->node)];
    node.seen = true;
    node.interface = hello->value("interface", std::string());
    node.address = node.interface.empty() ? link.peer_address() : hello->value("address", link.peer_address());
    node.identity = std::move(*identity);
    peers_.push_back({node.node, {node.address, hello->value("port", uint16_t{0})}});
    SLUICE_LOG(info, kComponent, "node {} is {} at {}", node.node, node.identity.host_name, node.address);
    links_.emplace(node.node, std::move(link));
  }

  // Everybody tries everybody.
  void exchange() {
    json peers = json::array();
    for (const Peer& peer : peers_)
      peers.push_back({{"node", peer.node}, {"host", peer.at.host}, {"port", peer.at.port}});
    for (auto& [node, link] : links_) (void)link.send({{"op", "peers"}, {"peers", peers}});
    nodes_[0].paths = try_paths(0, peers_);
    const Duration limit = kNodeConnectLimit * static_cast<int64_t>(peers_.size()) + kNodeSilenceLimit;
    for (auto& [number, link] : links_) {
      CheckedNode& node = nodes_[static_cast<size_t>(number)];
      const auto answer = link.receive(limit, "what it can reach");
      try {
        if (!answer.ok()) {
          node.paths = {{.to = 0, .took = {}, .problem = answer.error().message}};
        } else {
          node.paths = paths_from_json(answer->at("paths"));
        }
      } catch (const json::exception& e) {
        node.paths = {
            {.to = 0, .took = {}, .problem = fmt::format("its answer is none of this program's: {}", e.what())}};
      }
    }
  }

  const EngineOptions& options_;
  const Duration bound_;
  std::vector<CheckedNode> nodes_;
  std::vector<Peer> peers_;
  std::map<int64_t, NodeLink> links_;
};

// The next message of node 0; kCancelled if one is to stop before it comes.
Result<json> hear(NodeLink& link, Duration bound, std::string_view what, int stop_descriptor) {
  const TimePoint end = real_clock().now() + bound;
  for (;;) {
    SLUICE_TRY(auto message, link.receive());
    if (message) return std::move(*message);
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - real_clock().now()).count();
    if (left <= 0) return Error{ErrorCode::kTimeout, fmt::format("waited {:.0f} s for {}", seconds(bound), what)};
    pollfd entries[] = {{stop_descriptor, POLLIN, 0}, {link.fd(), POLLIN, 0}};
    ::poll(entries, std::size(entries), static_cast<int>(left));
    if (entries[0].revents != 0)
      return Error{ErrorCode::kCancelled, fmt::format("stopped while {} were awaited", what)};
  }
}

// Of a node beside node 0, once it is connected.
Result<ClusterCheck> take_part(NodeLink& link, const EngineOptions& options, const NodeIdentity& own, Duration bound,
                               int stop_descriptor) {
  SLUICE_TRY(const std::string address, rank_address_at_start(options, link.local_address()));
  SLUICE_TRY(const auto probe, probe_port(address));
  json hello = to_json(own);
  hello["op"] = "check";
  hello["address"] = address;
  hello["interface"] = chosen_interface(options).value_or("");
  hello["port"] = probe.port;
  SLUICE_TRY_VOID(link.send(hello));
  // Node 0 waits for others as long.
  SLUICE_TRY(const json first, hear(link, bound + kNodeSilenceLimit, "the other nodes", stop_descriptor));
  if (first["op"] == "refused") {
    return Error{ErrorCode::kAlreadyExists, fmt::format("node 0 refuses: {}", first.value("why", std::string("?")))};
  }
  try {
    std::vector<Peer> peers;
    for (const json& peer : first.at("peers")) {
      peers.push_back(
          {peer.at("node").get<int64_t>(), {peer.at("host").get<std::string>(), peer.at("port").get<uint16_t>()}});
    }
    SLUICE_TRY_VOID(link.send({{"op", "reached"}, {"paths", to_json(try_paths(own.node, peers))}}));
    const Duration limit = kNodeConnectLimit * static_cast<int64_t>(peers.size()) + 2 * kNodeSilenceLimit;
    SLUICE_TRY(const json result, hear(link, limit, "the results of all nodes", stop_descriptor));
    return ClusterCheck{result.at("table").get<std::string>(), result.at("passed").get<bool>()};
  } catch (const json::exception& e) {
    return Error{ErrorCode::kProtocol, fmt::format("what node 0 says is none of this program's: {}", e.what())};
  }
}

std::string in_columns(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) line += fmt::format("{:<{}}  ", row[i], widths[i]);
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

bool is_v6(const std::string& address) { return address.find(':') != std::string::npos; }

}  // namespace

ClusterCheck judge_cluster(const std::vector<CheckedNode>& nodes, Duration bound) {
  std::vector<std::vector<std::string>> rows{{"node", "host", "address", "version", "model", "flags"}};
  for (const CheckedNode& node : nodes) rows[0].push_back(fmt::format("to node {}", node.node));
  std::vector<std::string> problems;
  for (const CheckedNode& node : nodes) {
    auto& row = rows.emplace_back(1, fmt::to_string(node.node));
    if (!node.seen) {
      row.insert(row.end(), rows[0].size() - 1, "?");
      problems.push_back(fmt::format("node {} was not seen within {:.0f} s: what it prints says why, if it runs",
                                     node.node, seconds(bound)));
      continue;
    }
    const NodeIdentity& first = nodes[0].identity;
    const auto same = [](bool is) { return is ? "same" : "DIFFERS"; };
    const std::string address =
        node.interface.empty() ? node.address : fmt::format("{} ({})", node.address, node.interface);
    row.insert(row.end(), {node.identity.host_name, address, node.identity.version,
                           same(node.identity.model == first.model), same(node.identity.flags == first.flags)});
    for (const std::string& line : differences(first, node.identity)) problems.push_back(line);
    if (is_v6(node.address) != is_v6(nodes[0].address)) {
      problems.push_back(
          fmt::format("node {} is at {}, node 0 at {}: give --dist-init-addr an address instead of a name, "
                      "so that all are of one family",
                      node.node, node.address, nodes[0].address));
    }
    for (const CheckedNode& other : nodes) {
      const auto path = std::ranges::find(node.paths, other.node, &CheckedPath::to);
      if (path == node.paths.end()) {
        row.push_back(other.node == node.node ? "-" : "?");
      } else if (path->took) {
        row.push_back(fmt::format("{:.2f} ms", seconds(*path->took) * 1000));
      } else {
        row.push_back("FAILS");
        problems.push_back(fmt::format("from node {} to node {}: {}", node.node, other.node, path->problem));
      }
    }
  }
  ClusterCheck check{.table = in_columns(rows), .passed = problems.empty()};
  check.table += check.passed ? "\nThe nodes can be one instance.\n" : fmt::format("\n{}\n", fmt::join(problems, "\n"));
  return check;
}

Result<ClusterCheck> check_cluster(const EngineOptions& options, Duration bound, int stop_descriptor) {
  if (options.node_rank == 0) return Collector(options, bound).run(stop_descriptor);
  SLUICE_TRY(const Endpoint leader, parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  SLUICE_TRY_VOID(check_interface(options));
  const NodeIdentity own = identity_of(options);
  const TimePoint end = real_clock().now() + bound;
  std::string said;
  for (;;) {
    auto link = NodeLink::connect(leader, kNodeConnectLimit);
    auto checked =
        link.ok() ? take_part(*link, options, own, bound, stop_descriptor) : Result<ClusterCheck>(link.error());
    if (checked.ok() || checked.error().code == ErrorCode::kBadOption ||
        checked.error().code == ErrorCode::kCancelled) {
      return checked;
    }
    const std::string why =
        fmt::format("node {} cannot check with node 0 at {}: {}", own.node, to_string(leader), checked.error().message);
    if (real_clock().now() >= end) return Error{ErrorCode::kTimeout, why};
    if (why != said)
      SLUICE_LOG(info, kComponent, "{}; trying for {:.0f} s more", why, seconds(end - real_clock().now()));
    said = why;
    pollfd stop{stop_descriptor, POLLIN, 0};
    const auto pause = std::min(kNodeRetryEvery, end - real_clock().now());
    if (::poll(&stop, 1,
               static_cast<int>(std::max<int64_t>(std::chrono::ceil<std::chrono::milliseconds>(pause).count(), 0))) >
        0) {
      return Error{ErrorCode::kCancelled, "stopped while node 0 was awaited"};
    }
  }
}

}  // namespace sluice::engine
