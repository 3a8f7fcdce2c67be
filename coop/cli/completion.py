"""Completion in bash: Hydra answers, but its own script completes only `python FILE`, not `python -m coop.train`."""

BASH = r"""
_coop() {
    local words=($COMP_LINE)
    COMPREPLY=()
    case "${words[1]} ${words[2]}" in
        "-m coop.train" | "-m coop.evaluate") ;;
        *) return ;;
    esac
    local line="python ${COMP_LINE#*-m }"
    COMPREPLY=($(COMP_LINE=$line COMP_POINT=${#line} "${words[0]}" -m "${words[2]}" -sc query=bash 2> /dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _coop python python3
"""
