#include "engine/nodes/interface.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine/nodes/link.h"
#include "net/listen.h"

namespace sluice::engine {
namespace {

constexpr const char* kVariable = "GLOO_SOCKET_IFNAME";

bool is_v6(std::string_view address) { return address.find(':') != std::string_view::npos; }
bool is_loopback(std::string_view address) { return address.starts_with("127.") || address == "::1"; }
// A number, not a name.
bool is_address(const std::string& host) {
  in6_addr address{};
  return ::inet_pton(is_v6(host) ? AF_INET6 : AF_INET, host.c_str(), &address) == 1;
}

bool is_name_of_loopback(std::string_view host) {
  return host.find("localhost") != std::string_view::npos || host == "ip6-loopback";
}

// Why nothing can come by it; empty: it can.
std::string_view out_of_order(const NetworkInterface& interface) {
  if (!interface.up) return "it is down";
  if (!interface.carrier) return "it has no carrier: it is unplugged, or nothing is at the other end";
  return "";
}

// Such an address means nothing to a host without the name of the link there.
bool is_of_link(const sockaddr_storage& storage) {
  if (storage.ss_family != AF_INET6) return false;
  sockaddr_in6 address{};
  std::memcpy(&address, &storage, sizeof address);
  return IN6_IS_ADDR_LINKLOCAL(&address.sin6_addr);
}

}  // namespace

std::vector<NetworkInterface> network_interfaces() {
  std::vector<NetworkInterface> found;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return found;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    auto at = std::ranges::find(found, one->ifa_name, &NetworkInterface::name);
    if (at == found.end()) at = found.insert(at, {.name = one->ifa_name, .addresses = {}});
    // An interface that cannot tell, as a tunnel, counts as running to the system.
    at->up = (one->ifa_flags & IFF_UP) != 0;
    at->carrier = (one->ifa_flags & IFF_RUNNING) != 0;
    at->loopback = (one->ifa_flags & IFF_LOOPBACK) != 0;
    if (one->ifa_addr == nullptr) continue;
    const int family = one->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    sockaddr_storage storage{};
    std::memcpy(&storage, one->ifa_addr, family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    if (!is_of_link(storage)) at->addresses.push_back(net::address_of(storage));
  }
  ::freeifaddrs(all);
  return found;
}

std::string in_words(const std::vector<NetworkInterface>& interfaces) {
  std::vector<std::string> words;
  for (const NetworkInterface& one : interfaces) {
    const std::string what = !one.up                 ? "down"
                             : !one.carrier          ? "no carrier"
                             : one.addresses.empty() ? "no address"
                                                     : fmt::format("{}", fmt::join(one.addresses, ", "));
    words.push_back(fmt::format("{} ({})", one.name, what));
  }
  return words.empty() ? "none" : fmt::format("{}", fmt::join(words, ", "));
}

std::optional<std::string> chosen_interface(const EngineOptions& options) {
  if (options.gloo_socket_ifname) return options.gloo_socket_ifname;
  const char* set = std::getenv(kVariable);
  if (set == nullptr || *set == '\0') return std::nullopt;
  return set;
}

Result<std::string> address_of_interface(const std::vector<NetworkInterface>& interfaces, std::string_view name,
                                         std::string_view like) {
  const auto refuse = [&](ErrorCode code, std::string_view why) {
    return Error{code, fmt::format("--gloo-socket-ifname {} (or {}): {}; the interfaces of this host are {}", name,
                                   kVariable, why, in_words(interfaces))};
  };
  if (name.find(',') != std::string_view::npos) {
    return refuse(ErrorCode::kBadOption, "one interface is used, and this names several");
  }
  const auto at = std::ranges::find(interfaces, name, &NetworkInterface::name);
  if (at == interfaces.end()) return refuse(ErrorCode::kUnavailable, "there is no such interface");
  if (at->loopback && !like.empty() && !is_loopback(like)) {
    return refuse(ErrorCode::kBadOption,
                  fmt::format("it leads to this host alone, and nodes join at {}, as those of several hosts do", like));
  }
  if (const auto why = out_of_order(*at); !why.empty()) return refuse(ErrorCode::kUnavailable, why);
  const auto fits = [&](const std::string& address) { return like.empty() || is_v6(address) == is_v6(like); };
  const auto address = std::ranges::find_if(at->addresses, fits);
  if (address != at->addresses.end()) return *address;
  if (like.empty()) return refuse(ErrorCode::kUnavailable, "it has no address by which other hosts could reach it");
  return refuse(ErrorCode::kUnavailable,
                fmt::format("it has no {} address, and nodes join at {}", is_v6(like) ? "IPv6" : "IPv4", like));
}

Result<void> check_name(const std::string& host, std::string_view reached) {
  if (!is_loopback(reached) || is_address(host) || is_name_of_loopback(host)) return {};
  return Error{
      ErrorCode::kBadOption,
      fmt::format("--dist-init-addr: to this host the name {} is {}, by which no other host reaches it (is it in "
                  "/etc/hosts?): give an address of node 0, or localhost where all nodes are on one host",
                  host, reached)};
}

Result<void> check_reached(const std::vector<NetworkInterface>& interfaces, std::string_view reached) {
  for (const NetworkInterface& one : interfaces) {
    if (std::ranges::find(one.addresses, reached) == one.addresses.end()) continue;
    const auto why = out_of_order(one);
    if (why.empty()) return {};
    return Error{ErrorCode::kUnavailable,
                 fmt::format("nodes join by {}, which is of the interface {}, and {}; the interfaces of this host "
                             "are {}",
                             reached, one.name, why, in_words(interfaces))};
  }
  return {};
}

Result<std::string> rank_address(const EngineOptions& options, const std::string& reached,
                                 const InterfaceSource& interfaces) {
  SLUICE_TRY(const auto leader, parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  SLUICE_TRY_VOID(check_name(leader.host, reached));
  const auto name = chosen_interface(options);
  if (name) return address_of_interface(interfaces(), *name, reached);
  SLUICE_TRY_VOID(check_reached(interfaces(), reached));
  return reached;
}

Result<std::string> rank_address_at_start(const EngineOptions& options, const std::string& reached,
                                          const InterfaceSource& interfaces) {
  auto address = rank_address(options, reached, interfaces);
  if (!address.ok()) return Error{ErrorCode::kBadOption, address.error().message};
  return address;
}

Result<void> check_interface(const EngineOptions& options, const InterfaceSource& interfaces) {
  if (!chosen_interface(options)) return {};
  SLUICE_TRY(const auto leader, parse_endpoint("--dist-init-addr", *options.dist_init_addr));
  SLUICE_TRY_VOID(rank_address_at_start(options, is_address(leader.host) ? leader.host : "", interfaces));
  return {};
}

}  // namespace sluice::engine
