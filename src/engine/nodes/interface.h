// The network card by which the ranks of an instance on several hosts reach each other.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/options.h"

namespace sluice::engine {

struct NetworkInterface {
  std::string name;
  bool up = false;
  std::vector<std::string> addresses;  // as numbers; those that are of one link alone (fe80::) are none
};
// Of this host, in the system's order.
std::vector<NetworkInterface> network_interfaces();
using InterfaceSource = std::function<std::vector<NetworkInterface>()>;
// "lo (127.0.0.1, ::1), eth1 (10.0.1.2), eth2 (down)".
std::string in_words(const std::vector<NetworkInterface>& interfaces);

// --gloo-socket-ifname, or where it is not given the variable GLOO_SOCKET_IFNAME; nothing: the system decides.
std::optional<std::string> chosen_interface(const EngineOptions& options);

// The first address of the interface of that name, in the family of `like`, or of any where that is empty. kBadOption
// says what is wrong with the interface, and which ones there are.
Result<std::string> address_of_interface(const std::vector<NetworkInterface>& interfaces, std::string_view name,
                                         std::string_view like);

// Of this host, for ranks of others: of the interface that is chosen, in the family of `reached`; else `reached`, by
// which nodes join.
Result<std::string> rank_address(const EngineOptions& options, const std::string& reached,
                                 const InterfaceSource& interfaces = network_interfaces);
// kBadOption where an interface is chosen that cannot be used.
Result<void> check_interface(const EngineOptions& options, const InterfaceSource& interfaces = network_interfaces);

}  // namespace sluice::engine
