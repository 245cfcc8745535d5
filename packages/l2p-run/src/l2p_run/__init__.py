"""The ground floor of L2P: places, settings, folders, stages, progress and commands.

Importing it does nothing and loads nothing but itself; import the module that you need, such as
`from l2p_run import places`.
"""
