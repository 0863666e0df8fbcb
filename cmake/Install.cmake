# cmake --install: the binary, its man pages (written by the binary from its option tables), shell completion, systemd units,
# dashboard and alert rules.
include(GNUInstallDirs)
set(packaging ${CMAKE_SOURCE_DIR}/packaging)

install(TARGETS sluice RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

install(CODE "execute_process(COMMAND \"$<TARGET_FILE:sluice>\" options --man-pages \"${CMAKE_BINARY_DIR}/man\"
                              COMMAND_ERROR_IS_FATAL ANY)")
install(DIRECTORY ${CMAKE_BINARY_DIR}/man/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 FILES_MATCHING PATTERN "*.1")

install(FILES ${packaging}/completion/sluice.bash RENAME sluice
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${packaging}/completion/_sluice DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)

install(DIRECTORY ${CMAKE_SOURCE_DIR}/deploy/ DESTINATION ${CMAKE_INSTALL_DATADIR}/sluice)

set(units gateway)
if(SLUICE_ENGINE)
  list(APPEND units server)
endif()
# Written when installing, because the prefix may be chosen only then.
foreach(unit ${units})
  set(file ${CMAKE_BINARY_DIR}/systemd/sluice-${unit}.service)
  install(CODE "cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_PREFIX OUTPUT_VARIABLE prefix)
                set(SLUICE_BINARY \"\${prefix}/${CMAKE_INSTALL_BINDIR}/sluice\")
                configure_file(\"${packaging}/systemd/sluice-${unit}.service.in\" \"${file}\" @ONLY)")
  install(FILES ${file} DESTINATION lib/systemd/system)
endforeach()
