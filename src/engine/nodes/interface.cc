#include "engine/nodes/interface.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "net/listen.h"

namespace sluice::engine {
namespace {

constexpr const char* kVariable = "GLOO_SOCKET_IFNAME";

bool is_v6(std::string_view address) { return address.find(':') != std::string_view::npos; }

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
    at->up |= (one->ifa_flags & IFF_UP) != 0;
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
  const auto refuse = [&](std::string_view why) {
    return Error{ErrorCode::kBadOption, fmt::format("--gloo-socket-ifname {} (or {}): {}; the interfaces of this host "
                                                    "are {}",
                                                    name, kVariable, why, in_words(interfaces))};
  };
  if (name.find(',') != std::string_view::npos) return refuse("one interface is used, and this names several");
  const auto at = std::ranges::find(interfaces, name, &NetworkInterface::name);
  if (at == interfaces.end()) return refuse("there is no such interface");
  if (!at->up) return refuse("it is down");
  const auto fits = [&](const std::string& address) { return like.empty() || is_v6(address) == is_v6(like); };
  const auto address = std::ranges::find_if(at->addresses, fits);
  if (address != at->addresses.end()) return *address;
  if (like.empty()) return refuse("it has no address by which other hosts could reach it");
  return refuse(fmt::format("it has no {} address, and nodes join at {}", is_v6(like) ? "IPv6" : "IPv4", like));
}

Result<std::string> rank_address(const EngineOptions& options, const std::string& reached,
                                 const InterfaceSource& interfaces) {
  const auto name = chosen_interface(options);
  if (!name) return reached;
  return address_of_interface(interfaces(), *name, reached);
}

Result<void> check_interface(const EngineOptions& options, const InterfaceSource& interfaces) {
  SLUICE_TRY_VOID(rank_address(options, "", interfaces));
  return {};
}

}  // namespace sluice::engine
